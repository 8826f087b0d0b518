"""Damaged GGUF files: always ``CheckpointError``, or a load that works; never another exception."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from gguf_files import write_gguf

from headrace.core.errors import CheckpointError
from headrace.weights.checkpoint import open_checkpoint
from headrace.weights.gguf_reader import read_header

FIELDS = {"x.texts": ["one", "two"], "x.numbers": [1, 2, 3]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", kind="Q8_0", fields=FIELDS).read_bytes()


def load(path: Path) -> None:
    dict(read_header(path).metadata)
    checkpoint = open_checkpoint(path)
    try:
        checkpoint.config()
        for name in checkpoint.names():
            assert tuple(checkpoint.tensor(name).shape) == checkpoint.shape(name)
    finally:
        checkpoint.close()


def header_size(path: Path) -> int:
    return min(info.offset for info in read_header(path).tensors.values())


def test_random_damage_to_the_header(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(whole)
    size = header_size(path)
    chance = random.Random(11)
    refusals = []
    for _ in range(700):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 2)):
            damaged[chance.randrange(size)] = chance.choice((0, 1, 0x7F, 0xFF, chance.randrange(256)))
        path.write_bytes(damaged)
        try:
            load(path)
        except CheckpointError as error:
            refusals.append(str(error))
    assert all(str(path) in refusal for refusal in refusals)
    assert 200 < len(refusals) < 700


def test_every_truncation_is_refused(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(whole)
    size = header_size(path)
    end = max(info.offset + info.nbytes for info in read_header(path).tensors.values())
    for length in [*range(0, size, 7), *range(size, end, 1999), end - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"m\.gguf"):
            load(path)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"GGML", "does not begin with 'GGUF'"),
        (4, struct.pack("<I", 1), "GGUF version 1; supported: 2 and 3"),
        (4, struct.pack(">I", 3), "big endian is not supported"),
        (8, struct.pack("<Q", 1 << 60), "do not fit the file"),
        (16, struct.pack("<Q", 1 << 60), "do not fit the file"),
        (24, struct.pack("<Q", 1 << 63), "metadata key: expected 9223372036854775808 bytes"),
    ],
)
def test_damaged_preamble(tmp_path: Path, whole: bytes, offset: int, value: bytes, message: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(whole[:offset] + value + whole[offset + len(value) :])
    with pytest.raises(CheckpointError, match=message):
        load(path)


def test_a_folder_or_an_empty_file_under_the_name(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot be opened"):
        load(path)


def test_a_string_that_is_not_utf8_is_refused_when_it_is_looked_at(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(whole.replace(struct.pack("<Q", 3) + b"two", struct.pack("<Q", 3) + b"t\xffo"))
    metadata = read_header(path).metadata
    assert "llama.x.texts" in metadata
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"m\.gguf: metadata 'llama\.x\.texts': string 1: .*utf-8.*damaged"):
            metadata["llama.x.texts"]
    open_checkpoint(path).close()
