"""Where the outputs of native operators lie: in new memory, or, while a step is recorded, in slabs that stay."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


class Workspace:
    """Memory of a recorded step. A slab is taken again as soon as no tensor looks at it any more.

    A replay runs the same operators in the same order, so two outputs may share a slab if their lives did not overlap
    while the step was recorded. Operators of one thread only.
    """

    _GRAIN = 4096

    def __init__(self) -> None:
        self._free: dict[int, list[np.ndarray]] = defaultdict(list)
        self._size, self._n_tokens = 1, 1
        self.nbytes = 0
        """Of all slabs."""

    def room_for(self, size: int, n_tokens: int) -> Workspace:
        """From here on shapes are those of ``n_tokens`` tokens, and the memory behind them is enough for ``size``."""
        self._size, self._n_tokens = size, n_tokens
        return self

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A tensor whose address is good for as long as this workspace is."""
        n_bytes = dtype.itemsize * torch.Size(shape).numel()
        room = n_bytes // self._n_tokens * self._size
        size = max(1, -(-room // self._GRAIN)) * self._GRAIN
        free = self._free[size]
        slab = free.pop() if free else self._new(size)
        # torch holds the array for as long as any view of the tensor lives; then the slab is free.
        lease = slab[:room]
        weakref.finalize(lease, free.append, slab)
        return torch.from_numpy(lease)[:n_bytes].view(dtype).view(shape)

    def _new(self, size: int) -> np.ndarray:
        self.nbytes += size
        return np.empty(size, np.uint8)


class _NewMemory:
    """Every output is a new tensor."""

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)


_here: Workspace | _NewMemory = _NewMemory()


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """The output of an operator, not yet written."""
    return _here.empty(shape, dtype)


@contextmanager
def within(workspace: Workspace) -> Iterator[None]:
    """Outputs come out of ``workspace`` from here on. One step is recorded at a time."""
    global _here
    before, _here = _here, workspace
    try:
        yield
    finally:
        _here = before
