"""Loading holds one copy: no page of the file stays resident beside it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf_files import write_gguf

from headrace.weights.dummy import write_safetensors

ALLOWED = 20 << 20
"""Chunks, allocator, and pages of libraries that come in meanwhile, in bytes; a copy of a tensor is more."""

LOAD = """
import sys, torch
from pathlib import Path
from headrace.weights.checkpoint import open_checkpoint

torch.set_num_threads(1)
def peak():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

# Code and pools that any use of tensors brings in are not the load's.
torch.ones(1 << 16, dtype=torch.bfloat16).float().add_(1)
checkpoint = open_checkpoint(Path(sys.argv[1]))
dtype = getattr(torch, sys.argv[2])
before, parameters = peak(), {}
for name in checkpoint.names():
    parameters[name] = torch.empty(checkpoint.shape(name), dtype=dtype)
    checkpoint.read_into(name, parameters[name])
print(peak() - before, sum(parameter.nbytes for parameter in parameters.values()))
"""


def load(path: Path, dtype: str) -> tuple[int, int]:
    """(growth of the peak resident size, size of the parameters), in bytes, in a process of its own."""
    command = [sys.executable, "-c", LOAD, str(path), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    growth, size = map(int, done.stdout.split())
    return growth, size


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_safetensors(tmp_path: Path, dtype: str) -> None:
    tensors = {f"w{index}": torch.zeros(4096, 3072, dtype=torch.bfloat16) for index in range(5)}
    write_safetensors(tmp_path, {}, tensors, shard_bytes=60 << 20)
    growth, size = load(tmp_path, dtype)
    assert size >= 5 * 24 << 20
    assert size * 0.95 < growth < size + ALLOWED


def test_gguf(tmp_path: Path) -> None:
    rows = np.zeros((4096 * 64, 64), np.float32)
    path = write_gguf(tmp_path / "m.gguf", kind="Q8_0", tied=False, extra={"output.bias": rows})
    growth, size = load(path, "bfloat16")
    assert size > 30 << 20
    assert size * 0.95 < growth < size + ALLOWED
