"""What the structure tests look at: the files of the project and the imports in them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "headrace"
# Not ours, or made by a build: never looked at.
SKIPPED = {
    ".git",
    ".venv",
    "build",
    "dist",
    "__pycache__",
    ".hypothesis",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
}


def project_files() -> Iterator[Path]:
    """Every file of the project, in order of path."""
    for path in sorted(ROOT.rglob("*")):
        if path.is_file() and not SKIPPED.intersection(path.relative_to(ROOT).parts):
            yield path


def python_files() -> list[Path]:
    return [path for path in project_files() if path.suffix == ".py"]


def package_files() -> list[Path]:
    return [path for path in python_files() if path.is_relative_to(PACKAGE)]


def module_name(path: Path) -> str:
    """``headrace.core.plan`` for src/headrace/core/plan.py, ``headrace.core`` for its __init__.py."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@dataclass(frozen=True, slots=True)
class Import:
    """One import of a module of the package, at whatever depth of the file it stands."""

    importer: str
    target: str
    line: int


def imports(path: Path) -> Iterator[Import]:
    """Imports of headrace modules in a file of the package; relative ones are resolved."""
    importer = module_name(path)
    package = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "headrace":
                    yield Import(importer, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, package)
            if base.split(".")[0] == "headrace":
                for alias in node.names:
                    yield Import(importer, _target(base, alias.name), node.lineno)


def _base(node: ast.ImportFrom, package: str) -> str:
    if node.level == 0:
        return node.module or ""
    parts = package.split(".")
    parent = ".".join(parts[: len(parts) - node.level + 1])
    return f"{parent}.{node.module}" if node.module else parent


def _target(base: str, name: str) -> str:
    """``from base import name`` names the module base.name where there is one, else base."""
    path = PACKAGE.parent.joinpath(*base.split("."), name)
    return f"{base}.{name}" if path.with_suffix(".py").exists() or (path / "__init__.py").exists() else base
