"""The core's own tests: under sanitizers (races, accesses out of bounds, undefined behaviour), and on ARM."""

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
ARM_TOOLS = ("aarch64-linux-gnu-g++", "qemu-aarch64")


def missing(tools: tuple[str, ...]) -> list[str]:
    return [tool for tool in tools if shutil.which(tool, path=PATH) is None]


pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # most of it is the compiler's
    pytest.mark.skipif(bool(missing(TOOLS)), reason=f"needs {', '.join(TOOLS)} to build"),
]


def run(*command: str) -> None:
    env = {**os.environ, "PATH": PATH}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-8000:]}"


def built(folder: Path, *options: str) -> list[Path]:
    """The tests' programs."""
    run("cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", "-DHEADRACE_TESTS=ON", *options)
    run("cmake", "--build", str(folder))
    tests = sorted(folder.glob("*_test"))
    assert len(tests) == len(list((ROOT / "native" / "tests").glob("*_test.cpp")))
    return tests


@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
def test_every_test_of_the_core_passes_under(sanitizers: str, tmp_path: Path) -> None:
    for test in built(tmp_path, f"-DHEADRACE_SANITIZE={sanitizers}"):
        run(str(test))


@pytest.mark.skipif(
    bool(missing(ARM_TOOLS)), reason=f"needs {' and '.join(ARM_TOOLS)}: a cross compiler and QEMU's user mode"
)
def test_the_core_passes_on_arm(tmp_path: Path) -> None:
    """Linked statically: the emulator then needs no libraries of that machine."""
    target = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={ARM_TOOLS[0]}")
    for test in built(tmp_path, *target, "-DCMAKE_EXE_LINKER_FLAGS=-static"):
        run(ARM_TOOLS[1], str(test))
