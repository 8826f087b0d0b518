"""Where text goes: results to stdout, everything about them to stderr."""

from __future__ import annotations

import math
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

GIB = 1 << 30
MIB = 1 << 20


def out() -> Console:
    """Results. Made when used, so that a redirected stdout is the one that is meant."""
    return Console(file=sys.stdout, highlight=False, soft_wrap=not sys.stdout.isatty())


def err() -> Console:
    """Notes, progress and errors."""
    return Console(file=sys.stderr, highlight=False)


def note(text: str) -> None:
    """A line about what is going on."""
    err().print(Text(text, style="dim"), soft_wrap=True)


def error(text: str) -> None:
    """An error in one red line; nothing in it is taken for markup."""
    err().print(Text.assemble(("error: ", "bold red"), (text, "red")), soft_wrap=True)


def size(n_bytes: int) -> str:
    """``270 MiB``, ``1.5 GiB``."""
    return f"{n_bytes / GIB:.1f} GiB" if n_bytes >= GIB else f"{n_bytes / MIB:.0f} MiB"


def table(*columns: str, title: str | None = None) -> Table:
    """A table in the one look of all commands."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column, style="bold" if column == columns[0] else None, overflow="fold")
    return made


def print_json(value: Any) -> None:
    """One JSON document, indented, on stdout. A number that is none is null: JSON has no other word for it."""
    import json

    print(json.dumps(_finite(value), indent=2, ensure_ascii=False, default=str, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
