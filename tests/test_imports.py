"""What importing costs: torch and other heavy packages come in only when an engine is built."""

from __future__ import annotations

import subprocess
import sys

import pytest

from project import module_name, package_files

# Parts that must run in microseconds in tests, in the fuzzer and in the simulator.
WITHOUT_TORCH = (
    *("core", "cache", "sched", "spec", "tokenizer", "executor.base", "executor.sim", "sim", "serve", "cli"),
    *("engine.loop", "engine.engine", "engine.launch", "engine.process", "engine.spawn"),
)
HEAVY = ("torch", "transformers", "huggingface_hub", "numpy", "pydantic", "rich")


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.parametrize("part", WITHOUT_TORCH)
def test_the_part_imports_no_torch(part: str) -> None:
    prefix = f"headrace.{part}"
    modules = [
        name for path in package_files() if (name := module_name(path)) == prefix or name.startswith(prefix + ".")
    ]
    assert modules, f"no module {prefix}: has it moved?"
    loaded = _run(f"import sys, {', '.join(modules)}; print('torch' in sys.modules)")
    assert loaded.strip() == "False"


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = _run(f"import sys, headrace; print([name for name in {HEAVY} if name in sys.modules])")
    assert loaded.strip() == "[]"
