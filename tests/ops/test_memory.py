"""Tensors in pages of 2 MiB."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import pytest
import torch

from headrace.ops.memory import HUGE_PAGE, huge_zeros

MAPS = Path("/proc/self/maps")


def mapped(tensor: torch.Tensor) -> bool:
    ranges = [line.split()[0].split("-") for line in MAPS.read_text().splitlines()]
    return any(int(first, 16) <= tensor.data_ptr() < int(last, 16) for first, last in ranges)


@pytest.mark.parametrize("n_bytes", [1, 4097, HUGE_PAGE - 1, 3 * HUGE_PAGE + 5])
def test_memory_is_zero_aligned_and_writable_to_its_end(n_bytes):
    memory = huge_zeros(n_bytes)
    assert memory.shape == (n_bytes,)
    assert memory.data_ptr() % HUGE_PAGE == 0
    assert not memory.any()
    memory.fill_(7)
    assert (memory == 7).all()


@pytest.mark.skipif(not MAPS.exists(), reason="needs /proc/self/status to see what is resident")
def test_no_more_is_taken_than_was_asked_for():
    def resident() -> int:
        return int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

    n_bytes = 20 * HUGE_PAGE + 5000
    before = resident()
    memory = huge_zeros(n_bytes)
    assert resident() - before < HUGE_PAGE / 2
    memory.fill_(1)
    assert abs(resident() - before - n_bytes) < HUGE_PAGE / 2


def test_nothing_takes_nothing():
    assert huge_zeros(0).shape == (0,)


def test_what_cannot_be_had_is_an_error_that_says_how_much():
    with pytest.raises(MemoryError, match="4,611,686,018,427,387,904 bytes"):
        huge_zeros(1 << 62)


@pytest.mark.skipif(not MAPS.exists(), reason="needs /proc/self/maps to see mappings")
def test_memory_lives_as_long_as_the_last_view():
    memory = huge_zeros(64 * HUGE_PAGE)
    memory.fill_(1)
    view = memory[HUGE_PAGE:].view(torch.float32)
    address = memory[:1].detach()
    del memory, address
    gc.collect()
    assert mapped(view)
    assert view.sum() > 0
    start = view.data_ptr()
    del view
    gc.collect()
    ranges = [line.split()[0].split("-") for line in MAPS.read_text().splitlines()]
    assert not any(int(first, 16) <= start and start + HUGE_PAGE <= int(last, 16) for first, last in ranges)
