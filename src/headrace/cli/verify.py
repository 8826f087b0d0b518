"""``headrace verify``: the exactness checks on a user's own model and machine."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from headrace.cli import console
from headrace.cli.options import DEFAULT_MODEL
from headrace.cli.start import show_log
from headrace.eval.exactness import CHECKS, Finding, make_work, possible, promises_bits, verify


def verify_command(
    model: Annotated[str, typer.Argument(help="Built-in name, folder, .gguf file or hub id.")] = DEFAULT_MODEL,
    *,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    quantization: Annotated[
        str | None, typer.Option(help="int8, int4, gguf, or none: see docs/quantisation.md.")
    ] = None,
    requests: Annotated[int, typer.Option(min=6, help="Requests of each run.")] = 6,
    output_len: Annotated[int, typer.Option(min=2, help="Tokens generated for each request.")] = 24,
    seed: Annotated[int, typer.Option(help="Seed of the random prompts.")] = 7,
    only: Annotated[list[str] | None, typer.Option(help="Just the checks of this name.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Show that turning features on changes no output of a model. Ends with 1 when one does."""
    from headrace.llm import LLM

    names = [check.name for check in CHECKS]
    unknown = [name for name in only or () if name not in names]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is no check; there are: {', '.join(names)}", param_hint="--only")
    checks = [check for check in CHECKS if not only or check.name in only]
    show_log(quiet=True)
    weights = {"dtype": dtype, "quant_config": None if quantization is None else {"quant_algo": quantization}}
    with LLM(model, **weights, max_batch_size=1, kv_cache_config={"max_tokens": 512}) as llm:
        vocab_size = llm.effective_config["vocab_size"]
        bits = promises_bits(llm.effective_config)
        absent = llm.effective_config["absent_features"]
    checks = possible(checks, absent)
    for name, reason in absent.items():
        console.note(f"no check of {name}: {reason}")

    def start(**args: Any) -> LLM:
        return LLM(model, **weights, **args)

    console.note(f"the plain run, then {len(checks)} checks; " + ("bits must be equal" if bits else _TOKENS_ONLY))
    findings, bits = verify(
        start, checks, make_work(vocab_size, requests, output_len, seed), lambda found: console.note(_line(found, bits))
    )
    if json:
        console.print_json([dataclasses.asdict(found) | {"holds": found.holds(bits=bits)} for found in findings])
    else:
        console.out().print(_table(findings, bits))
    if not all(found.holds(bits=bits) for found in findings):
        raise typer.Exit(1)


_TOKENS_ONLY = "tokens must be equal (the torch reference operators do not promise bits)"


def _line(found: Finding, bits: bool) -> str:
    return f"  {found.check.name}: {'holds' if found.holds(bits=bits) else 'DOES NOT HOLD'}"


def _table(findings: list[Finding], bits: bool) -> Any:
    table = console.table("turned on", "what", "tokens", "logprobs", "verdict", title="Against the plain run")
    for found in findings:
        logprobs = "equal bits" if found.worst_logprob == 0.0 else f"within {found.worst_logprob:.1e}"
        verdict = "holds" if found.holds(bits=bits) else "DOES NOT HOLD"
        if found.idle:
            verdict += f": did not act: {', '.join(found.idle)}"
        elif not found.holds(bits=bits):
            verdict += f": {found.where}"
        table.add_row(
            found.check.name,
            found.check.about,
            "equal" if found.tokens_equal else "DIFFER",
            logprobs if found.tokens_equal else "-",
            verdict,
        )
    return table
