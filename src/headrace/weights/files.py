"""Reading at an offset, without mapping.

A mapped page stays resident while the map lives, so a mapped checkpoint beside its loaded copy costs twice its size.
``preadv`` into the destination leaves the bytes in the page cache only. What needs no conversion is mapped instead
(``map_into``): then the page cache is the only copy.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from headrace.core.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_MAP_FIXED, _MADV_POPULATE_READ = 0x10, 22
"""Linux, <asm-generic/mman-common.h>; the module mmap does not name them."""
_READ_LIMIT = 1 << 30
"""Bytes per system call; Linux returns at most 2 GiB - 4 KiB."""

CHUNK_BYTES = 1 << 20
"""Bytes of a tensor that are read and converted at a time: what stays in a core's cache."""


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return libc


class DataFile:
    """An open file that is read at offsets. Thread-safe: no shared position."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd: int | None = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be opened: {error.strerror}") from error
        self.size = os.fstat(self._fd).st_size

    def read_into(self, buffer: Any, offset: int, what: str) -> None:
        """Fill ``buffer`` (any writable one) from ``offset``; ``what`` names the data in the error of a short read."""
        if self._fd is None:
            raise ValueError(f"{self.path} is closed")
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._fd, [view[done : done + _READ_LIMIT]], offset + done)
            except OSError as error:
                raise CheckpointError(f"{self.path}: {what}: read error: {error.strerror}") from error
            if count == 0:
                raise CheckpointError(
                    f"{self.path}: {what}: expected {len(view)} bytes at offset {offset}, found {done}: truncated"
                )
            done += count

    def map_into(self, buffer: memoryview, offset: int) -> bool:
        """Puts pages of the file, copied when written, in the place of those of ``buffer``; False if it cannot be:
        nothing has changed then.

        The pages must be the buffer's alone, up to the end of its last one: memory from ``mmap`` is, a heap's is not.
        """
        if self._fd is None:
            raise ValueError(f"{self.path} is closed")
        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        if sys.platform != "linux" or address % mmap.PAGESIZE or offset % mmap.PAGESIZE:
            return False
        flags = mmap.MAP_PRIVATE | _MAP_FIXED
        libc = _libc()
        if libc.mmap(address, len(buffer), mmap.PROT_READ | mmap.PROT_WRITE, flags, self._fd, offset) != address:
            return False
        # A hint. MAP_POPULATE would copy every page, since they may be written.
        libc.madvise(address, len(buffer), _MADV_POPULATE_READ)
        return True

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def as_bytes(tensor: torch.Tensor) -> Any:
    """The memory of a contiguous tensor as a writable buffer of bytes (any dtype, numpy knows no bfloat16)."""
    import torch

    return tensor.detach().reshape(-1).view(torch.uint8).numpy()


Rows = Iterator[tuple[int, "torch.Tensor"]]
"""(first row, rows [n, ...]), in order: a tensor some rows at a time."""


Read = TypeVar("Read")


def slices(
    n_rows: int, row_bytes: int, read: Callable[[int, int], Read], *, multiple: int = 1
) -> Iterator[tuple[int, Read]]:
    """``read(first, last)`` for about a MiB at a time. Every slice but the last has a multiple of ``multiple`` rows."""
    step = max(multiple, CHUNK_BYTES // max(row_bytes, 1) // multiple * multiple)
    for first in range(0, n_rows, step):
        with _one_thread():
            rows = read(first, min(first + step, n_rows))
        yield first, rows


def fill_by_rows(out: torch.Tensor, rows: Rows) -> None:
    """Copy all rows into ``out``, converting to its dtype."""
    for first, part in rows:
        with _one_thread():
            out.detach()[first : first + part.shape[0]] = part


@contextmanager
def _one_thread() -> Iterator[None]:
    """No torch threads inside: chunks are so small that waiting for one another costs more than the work, and on a busy
    machine fifty times more."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_destination(out: torch.Tensor, shape: tuple[int, ...], path: Path, name: str) -> None:
    """``out`` must be contiguous, on the CPU and of ``shape``."""
    if tuple(out.shape) != shape:
        raise CheckpointError(f"{path}: tensor {name!r}: expected shape {list(out.shape)}, found {list(shape)}")
    if out.device.type != "cpu" or not out.is_contiguous():
        raise ValueError(
            f"tensor {name!r} is read into contiguous CPU memory; got {out.device}, strides {out.stride()}"
        )


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object; anything else raises ``CheckpointError``."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_optional_json(path: Path) -> dict[str, Any]:
    """As ``read_json_object``; a file that does not exist reads as an empty object."""
    return read_json_object(path) if path.exists() else {}
