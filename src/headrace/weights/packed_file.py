"""Files of packed weights: the memory of a model's parameters as it was once they were filled.

    magic, 16 bytes
    length of the header, 8 bytes, little-endian
    header, JSON: {"key", "sizes": bytes of each part, "sums": xxh3-64 of each chunk of 8 MiB, part after part}
    xxh3-64 of magic, length and header, 8 bytes
    from the next multiple of 64 KiB on: the parts, each at such a multiple

Large parts are mapped: what is in the page cache is there at once, and is the only copy. All is checked before it is
used. A file is never changed in its place: it is written under another name, and deleted by unlinking, which leaves
it to those who have it mapped.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import xxhash

from headrace.core.errors import CheckpointError

from .files import DataFile

_MAGIC = b"headrace packed\x01"
_ALIGNMENT = 64 << 10
_MAPPED = 1 << 20
"""Bytes from which on a part is worth a mapping."""
_CHUNK = 8 << 20
_MAX_HEADER = 1 << 30


@dataclass(frozen=True, slots=True)
class Part:
    """Memory that is written to a file, or filled from one."""

    memory: memoryview
    """Of bytes."""
    owns_pages: bool
    """It begins a page, and nobody else has anything in its pages up to the end of the last one."""


def write_packed(path: Path, key: str, parts: Sequence[memoryview]) -> None:
    """Writes a file that is there as a whole or not at all. ``parts``: of bytes. Raises ``OSError``."""
    sums = [xxhash.xxh3_64_hexdigest(part[start:stop]) for part in parts for start, stop in _chunks(len(part))]
    header = json.dumps({"key": key, "sizes": [len(part) for part in parts], "sums": sums}).encode()
    head = _MAGIC + len(header).to_bytes(8, "little") + header
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=".part")
    try:
        with open(handle, "wb") as file:
            file.write(head + xxhash.xxh3_64_digest(head))
            for part in parts:
                file.seek(-file.tell() % _ALIGNMENT, os.SEEK_CUR)
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def read_packed(path: Path, key: str, parts: Sequence[Part], threads: int) -> None:
    """Fills ``parts`` with what ``write_packed`` has written.

    Raises:
        CheckpointError: the file cannot be read, is damaged, or holds something else; some parts may be filled by then.
    """
    file = DataFile(path)
    try:
        sums, offset = _read_header(file, key, [len(part.memory) for part in parts])
        places = []
        for part in parts:
            offset += -offset % _ALIGNMENT
            end = offset + len(part.memory)
            may_map = part.owns_pages and len(part.memory) >= _MAPPED and end <= file.size
            is_there = may_map and file.map_into(part.memory, offset)
            for start, stop in _chunks(len(part.memory)):
                places.append(_Chunk(part.memory[start:stop], offset + start, is_there))
            offset = end
        with ThreadPoolExecutor(threads, thread_name_prefix="headrace-load") as pool:
            for _ in pool.map(lambda place, wanted: place.read(file, wanted), places, sums):
                pass
    finally:
        file.close()


def _read_header(file: DataFile, key: str, sizes: list[int]) -> tuple[list[str], int]:
    """The checksums of the chunks, and where the header ends."""
    start = bytearray(len(_MAGIC) + 8)
    file.read_into(start, 0, "start of the header")
    length = int.from_bytes(start[len(_MAGIC) :], "little")
    if start[: len(_MAGIC)] != _MAGIC or length > _MAX_HEADER:
        raise CheckpointError(f"{file.path}: not a file of packed weights")
    rest = bytearray(length + 8)
    file.read_into(rest, len(start), "header")
    header, wanted = rest[:length], bytes(rest[length:])
    if xxhash.xxh3_64_digest(bytes(start + header)) != wanted:
        raise CheckpointError(f"{file.path}: header: its checksum is another: damaged")
    fields = json.loads(header)
    if fields["key"] != key or fields["sizes"] != sizes:
        raise CheckpointError(f"{file.path}: holds the weights of another model, or in another form")
    return fields["sums"], len(start) + len(rest)


@dataclass(frozen=True, slots=True)
class _Chunk:
    memory: memoryview
    offset: int
    """In the file."""
    is_there: bool
    """By mapping."""

    def read(self, file: DataFile, wanted: str) -> None:
        if not self.is_there:
            file.read_into(self.memory, self.offset, "weights")
        if xxhash.xxh3_64_hexdigest(self.memory) != wanted:
            raise CheckpointError(f"{file.path}: weights at offset {self.offset}: their checksum is another: damaged")


def _chunks(n_bytes: int) -> Iterator[tuple[int, int]]:
    for start in range(0, n_bytes, _CHUNK):
        yield start, min(start + _CHUNK, n_bytes)
