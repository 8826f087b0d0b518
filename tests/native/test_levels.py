"""Operators, recorded steps and the exactness checks at every level that this machine runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.ops.native import core

if not core.is_available():
    pytest.skip(f"no native core: {core.reason()}", allow_module_level=True)

TESTS = Path(__file__).parents[1]
FILES = (
    *("ops/test_native_attention.py", "ops/test_latent.py", "ops/test_native_small.py", "ops/test_block_linear.py"),
    *("runner/test_graph.py", "eval/test_exactness.py"),
)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("level", core.native().runnable_levels())
def test_every_level_passes(level: str, file: str) -> None:
    """The level of this process has run them already, among the quick tests."""
    if level == core.native().level():
        pytest.skip("this process runs at it")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(TESTS / file)]
    done = subprocess.run(
        command, env={**os.environ, "HEADRACE_ISA": level}, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
