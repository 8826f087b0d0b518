"""Writes the lower half of structure.md from the first sentence of every module's docstring.

Run `make structure`; with ``--check`` it changes nothing and fails when the page is out of date.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("structure.md")
PACKAGE = PAGE.parent.parent / "src" / "headrace"
MARK = "<!-- From here on the page is written by `make structure` out of the modules' own first sentences. -->\n"

# In the order of the arrows: a part knows those above it at most. A part that is missing here comes last.
ORDER = (
    *(
        "core",
        "cache",
        "spec",
        "quant",
        "weights",
        "media",
        "tokenizer",
        "guided",
        "sampling",
        "ops",
        "layers",
        "models",
        "sched",
    ),
    *("runner", "executor", "engine", "sim", "bench", "serve", "cli"),
)


def first_sentence(path: Path) -> str:
    """The first paragraph of the docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("``", "`")


def lower_half() -> str:
    """The parts with their modules, as Markdown."""
    parts = {path.parent.relative_to(PACKAGE).parts[0] for path in PACKAGE.glob("*/**/*.py")}
    lines = ["", "## The package itself", ""]
    lines += [_line(path) for path in sorted(PACKAGE.glob("*.py"))]
    for part in sorted(parts, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name)):
        folder = PACKAGE / part
        lines += ["", f"## {part}", "", first_sentence(folder / "__init__.py"), ""]
        # An __init__ is described by the heading of its part.
        lines += [_line(path) for path in sorted(folder.rglob("*.py")) if path != folder / "__init__.py"]
    return "\n".join(lines) + "\n"


def _line(path: Path) -> str:
    return f"- `{path.relative_to(PACKAGE).as_posix()}`: {first_sentence(path)}"


def main() -> int:
    written = PAGE.read_text(encoding="utf-8")
    head, mark, _ = written.partition(MARK)
    if not mark:
        print(f"{PAGE.name} has lost its mark: {MARK!r}", file=sys.stderr)
        return 1
    wanted = head + mark + lower_half()
    if written == wanted:
        return 0
    if "--check" in sys.argv[1:]:
        print(f"docs/{PAGE.name} is out of date; run: make structure", file=sys.stderr)
        return 1
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
