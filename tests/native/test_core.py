"""The core's own tests under sanitizers: races, accesses out of bounds, undefined behaviour."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What pip installed beside this interpreter comes first.
PATH = os.pathsep.join((sysconfig.get_path("scripts"), os.environ["PATH"]))
TOOLS = ("cmake", "ninja", "c++")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(shutil.which(tool, path=PATH) is None for tool in TOOLS), reason=f"needs {', '.join(TOOLS)} to build"
    ),
]


def run(*command: str) -> None:
    done = subprocess.run(
        command, env={**os.environ, "PATH": PATH}, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-8000:]}"


@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
def test_every_test_of_the_core_passes_under(sanitizers: str, tmp_path: Path) -> None:
    options = ("-DHEADRACE_TESTS=ON", f"-DHEADRACE_SANITIZE={sanitizers}")
    run("cmake", "-S", str(ROOT), "-B", str(tmp_path), "-G", "Ninja", *options)
    run("cmake", "--build", str(tmp_path))
    tests = sorted(tmp_path.glob("*_test"))
    assert len(tests) == len(list((ROOT / "native" / "tests").glob("*_test.cpp")))
    for test in tests:
        run(str(test))
