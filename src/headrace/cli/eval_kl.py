"""``headrace eval kl``: how far answers move when weights, keys or values are kept in fewer bits."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from headrace.cli import console
from headrace.cli.options import DEFAULT_MODEL
from headrace.core.errors import ConfigError, RequestError


def eval_kl(
    model: Annotated[str, typer.Argument(help="Built-in name, folder, .gguf file or hub id.")] = DEFAULT_MODEL,
    *,
    text: Annotated[Path, typer.Option(help="A text file.")],
    mode: Annotated[
        list[str] | None, typer.Option(help="What is compared with float32, once for each (int8, int4).")
    ] = None,
    kv_cache_dtype: Annotated[
        list[str] | None, typer.Option(help="Of the modes' caches: each mode once for each (auto: as its activations).")
    ] = None,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of the text that are looked at.")] = 2048,
    context: Annotated[int, typer.Option(min=2, help="Tokens of a piece; each piece starts anew.")] = 512,
    threads: Annotated[int | None, typer.Option(min=1, help="Compute threads.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Compare a model in fewer bits with its run in fp32, position by position of a text.

    --mode float32 --kv-cache-dtype int8 is the cache alone.

    KL is that of the distributions over the next token, in nats. Products of weights in blocks round activations too;
    that is in it.
    """
    import torch

    from headrace.core.cgroup import usable_cpus
    from headrace.eval.kl import measure, pieces
    from headrace.eval.text_model import CACHES, MODES
    from headrace.ops.native import core
    from headrace.tokenizer.load import load_tokenizer
    from headrace.weights.resolve import resolve_model

    modes = mode or ["int8", "int4"]
    unknown = [name for name in modes if name not in MODES]
    if unknown:
        raise ConfigError(f"--mode {unknown[0]}: there are {', '.join(MODES)}")
    caches = kv_cache_dtype or ["auto"]
    unknown = [name for name in caches if name not in CACHES]
    if unknown:
        raise ConfigError(f"--kv-cache-dtype {unknown[0]}: there are {', '.join(CACHES)}")
    try:
        content = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--text {text}: {error}") from None
    core.set_threads(threads or usable_cpus())
    torch.set_num_threads(1 if core.is_available() else threads or usable_cpus())
    path = resolve_model(model, on_note=console.note).path
    parts = pieces(load_tokenizer(path).encode(content, add_special_tokens=False), context, tokens)
    if not parts:
        raise RequestError(f"--text {text}: there are no two tokens in it")
    compared = [MODES[name].with_cache(cache) for name in modes for cache in caches]
    findings = measure(path, compared, parts, lambda name: console.note(f"{name} ..."))
    if json:
        console.print_json([dataclasses.asdict(found) for found in findings])
    else:
        console.out().print(_table(findings, sum(map(len, parts)), text.name))


def _table(findings: list[Any], n_tokens: int, name: str) -> Any:
    table = console.table(
        "mode", "mean KL", "99% of KL", "same top token", "perplexity", "weights", title=f"{n_tokens} tokens of {name}"
    )
    for found in findings:
        table.add_row(
            found.mode,
            f"{found.mean_kl:.2e}",
            f"{found.p99_kl:.2e}",
            f"{found.same_top:.1%}",
            f"{found.perplexity:.3f}",
            console.size(found.n_bytes),
        )
    return table
