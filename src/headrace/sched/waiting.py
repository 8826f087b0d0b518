"""The sequences that wait: in order of standing, but for those that wait for a block that another is computing."""

from __future__ import annotations

from collections.abc import Iterable

from headrace.cache.lazy_heap import LazyHeap
from headrace.core.sequence import Sequence


class WaitingQueue:
    """Priority first, then arrival. Every operation is O(log n); whoever leaves from the middle is forgotten lazily."""

    def __init__(self) -> None:
        self._parked_at: dict[Sequence, bytes | None] = {}
        """Every waiting sequence; the key it waits for, or None if it stands in line."""
        self._line: LazyHeap[Sequence] = LazyHeap(lambda _, seq: self._parked_at.get(seq, b"") is None)
        self._parked: dict[bytes, list[Sequence]] = {}
        self.n_parked = 0

    def __len__(self) -> int:
        return len(self._parked_at)

    def push(self, seq: Sequence) -> None:
        self._parked_at[seq] = None
        self._line.push(seq.standing, seq)

    def peek(self) -> Sequence | None:
        """The first in line, or None. Those parked do not count."""
        top = self._line.peek()
        return None if top is None else top[1]

    def pop(self) -> Sequence:
        """Takes out the first in line, which ``peek`` has just shown."""
        seq = self.peek()
        if seq is None:
            raise IndexError("nobody stands in line")
        self._line.pop()
        del self._parked_at[seq]
        return seq

    def park(self, key: bytes) -> None:
        """The first in line steps aside until ``wake`` names ``key``; those behind it may go ahead."""
        seq = self.pop()
        self._parked_at[seq] = key
        self._parked.setdefault(key, []).append(seq)
        self.n_parked += 1

    def wake(self, keys: Iterable[bytes]) -> None:
        """Those who wait for one of ``keys`` stand in line again, at their old standing."""
        for key in keys:
            for seq in self._parked.pop(key, ()):
                self.n_parked -= 1
                self.push(seq)

    def discard(self, seq: Sequence) -> None:
        """Takes out a sequence, wherever it stands."""
        key = self._parked_at.pop(seq)
        if key is None:
            self._line.died()
            return
        self.n_parked -= 1
        self._parked[key].remove(seq)
        if not self._parked[key]:
            del self._parked[key]
