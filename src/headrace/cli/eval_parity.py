"""``headrace eval parity``: a model against transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from headrace.cli import console
from headrace.core.errors import ConfigError


def eval_parity(
    model: Annotated[str | None, typer.Argument(help="Built-in name, folder, .gguf file or hub id.")] = None,
    *,
    tiny: Annotated[
        str | None, typer.Option(help="Random tiny models instead: an architecture, one variant of it, or all.")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="Prompts are pieces of this file, not random tokens.")] = None,
    prompts: Annotated[str, typer.Option(help="Tokens of each prompt.")] = "1,3,40,70,200",
    output_len: Annotated[int, typer.Option(min=1, help="Greedy tokens after each prompt.")] = 8,
    tolerance: Annotated[float, typer.Option(min=0.0, help="Of a prompt logprob.")] = 1e-3,
    threads: Annotated[int | None, typer.Option(min=1, help="Compute threads.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Compare a model in fp32 with transformers' own: logits, greedy tokens, KL. Ends with 1 where they differ.

    The tokens come out of the engine, prompts cut into chunks and run together. Both models are in memory.
    """
    if (model is None) == (tiny is None):
        raise ConfigError("give a model, or --tiny with an architecture, a variant or 'all'")
    if tiny is not None and text is not None:
        raise ConfigError("--text goes with a model: a random tiny one knows no words")
    from headrace.cli.start import show_log
    from headrace.core.cgroup import usable_cpus

    show_log(quiet=True)
    lengths = _lengths(prompts)
    args = {"num_threads": threads or usable_cpus()}
    cases = _tiny(tiny) if tiny is not None else _own(str(model))
    found = []
    for name, folder, reference, remark in cases:
        from headrace.eval.parity import measure

        if remark:
            console.note(remark)
        console.note(f"{name} ...")
        given = _pieces(folder, text, lengths) if text is not None else _random(reference, lengths)
        found.append(measure(name, folder, reference, given, output_len, **args))
    if json:
        console.print_json([dataclasses.asdict(one) | {"holds": one.holds(tolerance)} for one in found])
    else:
        console.out().print(_table(found, tolerance))
    if not all(one.holds(tolerance) for one in found):
        raise typer.Exit(1)


Case = tuple[str, Path, Any, str]
"""Name, folder, reference, and a remark on it."""


def _own(model: str) -> Iterator[Case]:
    from headrace.eval.references import open_reference
    from headrace.weights.resolve import resolve_model

    resolved = resolve_model(model, on_note=console.note)
    reference, remark = open_reference(resolved.path)
    yield resolved.name, resolved.path, reference, remark


def _tiny(asked: str) -> Iterator[Case]:
    import tempfile

    import torch

    from headrace.eval import tiny

    for name in tiny.names_of(asked):
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            reference = tiny.make(name)
            yield name, tiny.save(reference, Path(folder)), reference, ""


def _random(reference: Any, lengths: list[int]) -> list[list[int]]:
    from headrace.eval.references import vocab_size
    from headrace.eval.tiny import random_prompts

    return random_prompts(vocab_size(reference), lengths)


def _pieces(folder: Path, text: Path, lengths: list[int]) -> list[list[int]]:
    """One after the other out of the text."""
    from headrace.tokenizer.load import load_tokenizer

    try:
        content = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--text {text}: {error}") from None
    tokens = load_tokenizer(folder).encode(content, add_special_tokens=False)
    if len(tokens) < sum(lengths):
        raise ConfigError(f"--text {text}: it has {len(tokens)} tokens, and --prompts takes {sum(lengths)}")
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    return [tokens[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def _lengths(prompts: str) -> list[int]:
    try:
        lengths = [int(part) for part in prompts.split(",")]
    except ValueError:
        lengths = []
    if not lengths or min(lengths) < 1:
        raise ConfigError(f"--prompts {prompts!r}: give lengths of at least 1, as in 1,40,200")
    return lengths


def _table(found: list[Any], tolerance: float) -> Any:
    table = console.table(
        "model", "logits", "logprobs", "max KL", "greedy", "verdict",
        title="Against the reference in fp32: largest differences, and greedy tokens that are equal",
    )  # fmt: skip
    for one in found:
        greedy = f"{one.same_greedy}/{one.n_greedy}" if one.n_greedy else "-"
        verdict = "equal" if one.holds(tolerance) else "DIFFERENT"
        errors = (one.logits_error, one.logprob_error, one.max_kl)
        table.add_row(one.name, *(f"{error:.1e}" for error in errors), greedy, verdict)
    return table
