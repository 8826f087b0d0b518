"""The shape of the project: imports point down, parts stay small, and the step path reads no configuration."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from project import PACKAGE, ROOT, imports, module_name, package_files, project_files, python_files

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 80

# What each part may import, beside itself. A name stands for that module and all below it. A part stands after all it
# may import, so that the arrows point down; `test_the_table_points_down` holds the table to that.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "core": (),
    # Peers that know core only.
    "cache": ("core",),
    "spec": ("core",),
    "quant": ("core",),
    "weights": ("core", "quant.formats"),
    "media": ("core",),
    # A GGUF file holds the tokenizer as well.
    "tokenizer": ("core", "weights.gguf_reader"),
    "guided": ("core", "tokenizer.tokenizer"),
    # From numbers to models.
    "ops": ("core", "cache.specs", "quant.formats"),
    "sampling": ("core", "guided.contract", "ops.native.core"),
    "layers": ("core", "cache.specs", "quant", "ops", "weights"),
    "models": ("core", "cache.specs", "quant", "ops", "layers", "weights"),
    # From requests to plans. No torch here.
    "sched": ("core", "cache", "spec"),
    "executor": (),
    "executor.base": ("core", "cache"),
    "executor.sim_model": ("core", "cache"),
    "executor.sim": ("core", "cache", "executor.base", "executor.sim_model"),
    # One worker's device side.
    "runner": ("core", "cache", "quant", "ops", "layers", "models", "weights", "sampling", "executor.base"),
    "executor.inproc": ("core", "cache", "executor.base", "runner"),
    # What holds them together.
    # Whether what drafts is a head is told by its configuration.
    "engine": (
        *("core", "cache", "spec", "media", "tokenizer", "guided", "sched", "executor", "weights", "runner"),
        *("models.eagle3", "models.mtp"),
    ),
    "llm": ("core", "tokenizer", "weights", "models", "runner", "executor", "engine", "sched", "cache", "spec"),
    "sim": ("core", "cache", "spec", "guided", "sched", "executor", "engine"),
    # What people touch.
    "bench": ("core", "llm"),
    # From one kind of file to another; which tensors are rounded is what a model says that is built without memory.
    "convert": ("core", "quant", "ops.table", "layers", "models", "weights", "tokenizer"),
    # kl runs a model over a text without an engine.
    "eval": ("core", "cache", "ops", "layers", "models", "weights", "runner.scheme", "engine.results", "llm"),
    # What drafts, trained on what the model itself says.
    "train": ("core", "weights", "eval.text_model", "llm"),
    "serve": ("core", "tokenizer.tokenizer", "engine.results", "engine.engine"),
    # features looks a model up without loading it; doctor asks for the memory that the engine would plan with.
    "cli": (
        *("core", "weights", "media", "tokenizer", "engine.results", "engine.engine", "engine.launch", "engine.spawn"),
        *("llm", "bench", "convert", "eval", "train", "serve"),
        *("models.registry", "models.published", "layers.base", "ops.table", "ops.native.core", "runner.memory"),
    ),
}

# Files and functions past their budget, each with the reason why it is better so. `path` or `path::function`.
OVER_BUDGET: dict[str, str] = {}

# Modules that run within a step, and those beside them that must not read settings either: what is optional is decided
# in the build step, and reaches these as plain values and null objects.
STEP_PATH = ("cache", "sched", "spec", "sampling", "ops", "layers", "models", "runner", "executor", "engine.loop")
BUILD_STEP = ("runner.build", "runner.drafting", "runner.memory", "models.config")


def _part(module: str) -> str:
    """The row of MAY_IMPORT that a module belongs to, or an empty string for the package itself."""
    name = module.removeprefix("headrace").lstrip(".")
    return next((part for part in sorted(MAY_IMPORT, key=len, reverse=True) if _within(name, part)), "")


def _within(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")


def parts() -> list[Path]:
    """All modules but the package's own __init__, which hands out names of every part, lazily."""
    return [path for path in package_files() if path != PACKAGE / "__init__.py"]


def test_every_module_belongs_to_a_part() -> None:
    homeless = [name for path in parts() if not _part(name := module_name(path))]
    assert not homeless, f"add a row to MAY_IMPORT for: {homeless}"


def test_the_table_points_down() -> None:
    seen: list[str] = []
    for part, allowed in MAY_IMPORT.items():
        for target in allowed:
            known = any(_within(target, other) or _within(other, target) for other in seen)
            assert known, f"{part} may import {target}, which comes later in MAY_IMPORT"
        seen.append(part)


@pytest.mark.parametrize("path", parts(), ids=module_name)
def test_imports_point_down(path: Path) -> None:
    module = module_name(path)
    part = _part(module)
    wrong = []
    for found in imports(path):
        target = found.target.removeprefix("headrace").lstrip(".")
        if not any(_within(target, name) for name in (part, *MAY_IMPORT[part])):
            wrong.append(f"line {found.line}: {module} imports {found.target}")
    assert not wrong, f"{part} may import {MAY_IMPORT[part]} only: {wrong}"


def _functions(path: Path) -> list[tuple[str, int]]:
    """(qualified name, lines) of every function of a file."""
    found: list[tuple[str, int]] = []

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{prefix}{child.name}"
                if not isinstance(child, ast.ClassDef):
                    found.append((name, (child.end_lineno or child.lineno) - child.lineno + 1))
                visit(child, f"{name}.")
            else:
                visit(child, prefix)

    visit(ast.parse(path.read_text()), "")
    return found


def _over_budget() -> dict[str, int]:
    """Everything over its budget: name as in OVER_BUDGET, and its lines."""
    over: dict[str, int] = {}
    for path in python_files():
        name = path.relative_to(ROOT).as_posix()
        lines = len(path.read_text().splitlines())
        if lines > MAX_FILE_LINES:
            over[name] = lines
        over |= {f"{name}::{function}": n for function, n in _functions(path) if n > MAX_FUNCTION_LINES}
    return over


def test_files_and_functions_stay_small() -> None:
    over = _over_budget()
    unexcused = {name: lines for name, lines in over.items() if name not in OVER_BUDGET}
    assert not unexcused, f"over {MAX_FILE_LINES} lines a file or {MAX_FUNCTION_LINES} a function: {unexcused}"
    stale = [name for name in OVER_BUDGET if name not in over]
    assert not stale, f"back within budget, take them off the list: {stale}"


def test_the_step_path_reads_no_configuration() -> None:
    readers = []
    for path in package_files():
        module = module_name(path)
        name = module.removeprefix("headrace.")
        if any(_within(name, part) for part in STEP_PATH) and not any(_within(name, part) for part in BUILD_STEP):
            readers += [
                f"{module} line {found.line}" for found in imports(path) if found.target == "headrace.core.config"
            ]
    assert not readers, f"only {BUILD_STEP} and what is above the loop may import core.config: {readers}"


@pytest.mark.parametrize("path", package_files(), ids=module_name)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path.relative_to(ROOT)} has no docstring"


# Split, so that this file does not name them itself.
FORBIDDEN = ("/" + "work/", "/" + "root/", "pypi" + ".org", "python" + "hosted", "download." + "pytorch")


def test_nothing_names_a_machine_or_a_package_host() -> None:
    found = []
    for path in project_files():
        text = path.read_bytes().decode("utf-8", errors="ignore")
        found += [f"{path.relative_to(ROOT)}: {word}" for word in FORBIDDEN if word in text]
    assert not found


def test_the_structure_page_is_up_to_date() -> None:
    page = subprocess.run([sys.executable, ROOT / "docs" / "structure.py", "--check"], capture_output=True, text=True)
    assert page.returncode == 0, page.stderr


def test_the_structure_page_lists_every_module_once() -> None:
    listed = re.findall(r"^- `([\w/]+\.py)`: \S", (ROOT / "docs" / "structure.md").read_text(), flags=re.MULTILINE)
    parts = {PACKAGE / part / "__init__.py" for part in os.listdir(PACKAGE)}
    modules = [path.relative_to(PACKAGE).as_posix() for path in package_files() if path not in parts]
    assert sorted(listed) == sorted(modules)
