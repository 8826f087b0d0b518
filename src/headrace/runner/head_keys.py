"""Where the keys and values of a draft head lie: with the target's, or apart (``draft_cache``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from headrace.cache.groups import CacheGroup
from headrace.core.plan import SlotInit
from headrace.ops.batch import Batch

from .gather import gather_rows
from .slots import SlotTable


class HeadKeys(Protocol):
    """Rows of slots, at positions of their sequences, and the blocks that they are written to."""

    groups: Sequence[CacheGroup]
    """In the order of the block tables."""

    def bind(self, init: SlotInit) -> None:
        """The slot belongs to this sequence now, of which ``init.computed`` tokens are the target's already."""
        ...

    def release(self, slot: int) -> None:
        """Its sequence has left it."""
        ...

    def make_room(self, slots: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """For which slots the rows from ``starts``, the first of each that is not kept yet, to ``ends`` can be written:
        bool [len(slots)]."""
        ...

    def batch(self, slots: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> tuple[Batch, np.ndarray]:
        """``counts[i]`` rows of ``slots[i]`` from ``starts[i]`` on, whose tokens are still to be put in, and the
        position of each in its sequence: int64 [T]."""
        ...

    def keep(self, slots: np.ndarray, ends: np.ndarray) -> None:
        """The rows before ``ends`` are written, beside states and tokens that stay."""
        ...

    def count(self, counters: Counter[str]) -> None:
        """Adds what has happened since it was asked last."""
        ...


class SharedKeys:
    """In the blocks of the target, which has made room already."""

    def __init__(self, groups: Sequence[CacheGroup], slots: SlotTable, device: torch.device) -> None:
        self.groups, self._slots, self._device = groups, slots, device

    def bind(self, init: SlotInit) -> None:
        pass

    def release(self, slot: int) -> None:
        pass

    def make_room(self, slots: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        return np.ones(len(slots), bool)

    def batch(self, slots: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> tuple[Batch, np.ndarray]:
        batch = gather_rows(slots, starts, counts, np.zeros_like(counts), self._slots, self._device)
        return batch, batch.positions.numpy()

    def keep(self, slots: np.ndarray, ends: np.ndarray) -> None:
        pass

    def count(self, counters: Counter[str]) -> None:
        pass
