"""Files of packed weights: what was written comes back, and what is damaged is an error."""

from __future__ import annotations

import mmap
import os
import random
from pathlib import Path

import pytest

from headrace.core.errors import CheckpointError
from headrace.weights.packed_file import Part, read_packed, write_packed

SIZES = (3, 0, 70_000, (1 << 20) + 5, (9 << 20) + 1)


def _bytes() -> list[bytes]:
    return [random.Random(n).randbytes(n) for n in SIZES]


def _empty() -> list[Part]:
    parts = []
    for n in SIZES:
        own = n >= 1 << 20
        memory = mmap.mmap(-1, n) if own else bytearray(n)
        parts.append(Part(memoryview(memory)[:n], own))
    return parts


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "new folder" / "weights.packed"
    write_packed(path, "key", [memoryview(data) for data in _bytes()])
    return path


@pytest.mark.parametrize("threads", [1, 2])
def test_it_comes_back_and_belongs_to_the_reader(file: Path, threads: int) -> None:
    parts = _empty()
    read_packed(file, "key", parts, threads)
    assert [bytes(part.memory) for part in parts] == _bytes()
    # Written to and deleted, by whom it may be: neither reaches the other.
    parts[-1].memory[7] ^= 1
    others = _empty()
    read_packed(file, "key", others, threads)
    assert [bytes(part.memory) for part in others] == _bytes()
    file.unlink()
    assert [bytes(part.memory) for part in others] == _bytes()


def test_nothing_else_stands_in_its_folder(file: Path) -> None:
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("place", [0, 17, 40, 0.2, 0.5, -1])
def test_every_changed_byte_is_found(file: Path, place: float) -> None:
    data = bytearray(file.read_bytes())
    data[int(place if place in (0, 17, 40, -1) else place * len(data))] ^= 0x10
    # Some fall between two parts, where nobody looks.
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=str(file)):
        read_packed(file, "key", _empty(), 2)


@pytest.mark.parametrize("left", [0, 10, 200, 0.4, 0.999])
def test_a_file_that_ends_early_is_an_error(file: Path, left: float) -> None:
    size = file.stat().st_size
    os.truncate(file, int(left if left > 1 else left * size))
    with pytest.raises(CheckpointError, match=str(file)):
        read_packed(file, "key", _empty(), 2)


def test_another_key_or_other_sizes_are_errors(file: Path) -> None:
    with pytest.raises(CheckpointError, match="another model"):
        read_packed(file, "another", _empty(), 1)
    with pytest.raises(CheckpointError, match="another model"):
        read_packed(file, "key", _empty()[:-1], 1)
