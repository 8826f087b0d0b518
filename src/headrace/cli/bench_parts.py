"""What the bench commands share: their options, and the rows of a report."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from headrace.bench.report import Report, Spread
from headrace.cli import console

Model = Annotated[str, typer.Argument(help="Built-in name, folder, .gguf file or hub id.")]
PromptLen = Annotated[int, typer.Option(min=1, help="Tokens of each random prompt.")]
OutputLen = Annotated[int, typer.Option(min=2, help="Tokens generated for each request.")]
PromptFile = Annotated[Path | None, typer.Option(help="Real prompts, one a line, in place of random ones.")]
Seed = Annotated[int, typer.Option(help="Seed of the random prompts.")]
Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]

Row = tuple[str, str, str]


def report_rows(report: Report) -> list[Row]:
    """What, how much, and a note."""
    tokens = f"{report.prompt_tokens} in, {report.output_tokens} out"
    return [
        ("requests", f"{report.requests}, {report.concurrency} at a time", ""),
        ("tokens", tokens, f"{report.cached_tokens} from the cache"),
        ("output", f"{report.output_rate:.1f} tokens/s", "prefill included"),
        ("one sequence", f"{report.decode_rate:.1f} tokens/s", "after its first token"),
        ("in and out", f"{report.total_rate:.1f} tokens/s", ""),
        ("first token", *_spread(report.to_first_token)),
        ("next token", *_spread(report.between_tokens)),
        ("whole answer", *_spread(report.whole)),
    ]


def report_table(rows: Iterable[Row]) -> Any:
    table = console.table("", "", "")
    table.show_header = False
    for row in rows:
        table.add_row(*row)
    return table


def _spread(spread: Spread) -> tuple[str, str]:
    """The median, and what is beyond it, in milliseconds."""
    return f"{spread.p50 * 1e3:.1f} ms", f"p90 {spread.p90 * 1e3:.1f}, p99 {spread.p99 * 1e3:.1f}"
