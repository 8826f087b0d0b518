"""The sequences that wait: in order of standing, but for those that wait for a block that another is computing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from headrace.cache.lazy_heap import LazyHeap
from headrace.core.sequence import Sequence

_ASIDE = b""
"""In place of a key: nothing in the cache ends the waiting."""


class WaitingQueue:
    """Priority first, then arrival. Every operation is O(log n); whoever leaves from the middle is forgotten lazily."""

    def __init__(self) -> None:
        self._parked_at: dict[Sequence, bytes | None] = {}
        """Every waiting sequence; the key it waits for, or None if it stands in line."""
        self._place: dict[Sequence, tuple[Any]] = {}
        """The keys of those in line. Who left and came back has a dead entry too: its key is another object."""
        self._line: LazyHeap[Sequence] = LazyHeap(lambda key, seq: self._place.get(seq) is key)
        self._parked: dict[bytes, list[Sequence]] = {}
        self.n_parked = 0
        """Those that wait for a block."""
        self.n_aside = 0
        """Beams that wait for others of their request."""

    def __len__(self) -> int:
        return len(self._parked_at)

    def push(self, seq: Sequence) -> None:
        """Puts ``seq`` in line. A beam that waits for the others of its request stands aside, until it is taken out."""
        if seq.waits_for_kin:
            self._parked_at[seq] = _ASIDE
            self.n_aside += 1
            return
        self._parked_at[seq] = None
        place = self._place[seq] = (seq.standing,)
        self._line.push(place, seq)

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
        del self._parked_at[seq], self._place[seq]
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
            del self._place[seq]
            self._line.died()
        elif key == _ASIDE:
            self.n_aside -= 1
        else:
            self.n_parked -= 1
            self._parked[key].remove(seq)
            if not self._parked[key]:
                del self._parked[key]
