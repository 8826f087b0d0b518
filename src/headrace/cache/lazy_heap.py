"""A heap whose entries may die in place: they are skipped when they surface, and swept when they are the majority."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class LazyHeap(Generic[T]):
    """Smallest key first, ties in order of arrival. All operations are O(log n), amortised.

    ``alive(key, item)`` says whether an entry still counts. Whoever lets an entry die calls ``died`` once, so that the
    heap never holds more than twice the live entries (and a few).
    """

    def __init__(self, alive: Callable[[Any, T], bool]) -> None:
        self._alive = alive
        self._entries: list[tuple[Any, int, T]] = []
        self._arrival = itertools.count()
        self._dead = 0

    def push(self, key: Any, item: T) -> None:
        heapq.heappush(self._entries, (key, next(self._arrival), item))

    def peek(self) -> tuple[Any, T] | None:
        """(key, item) of the first live entry, or None."""
        entries = self._entries
        while entries:
            key, _, item = entries[0]
            if self._alive(key, item):
                return key, item
            heapq.heappop(entries)
            self._dead -= 1
        return None

    def pop(self) -> None:
        """Takes out the entry that ``peek`` has just shown."""
        heapq.heappop(self._entries)

    def died(self) -> None:
        """An entry of this heap has died."""
        self._dead += 1
        if self._dead > 16 and 2 * self._dead > len(self._entries):
            self._entries = [entry for entry in self._entries if self._alive(entry[0], entry[2])]
            heapq.heapify(self._entries)
            self._dead = 0

    def __len__(self) -> int:
        """Live entries."""
        return len(self._entries) - self._dead

    def live(self) -> Iterator[tuple[Any, T]]:
        """Live entries in no order: for checks."""
        return ((key, item) for key, _, item in self._entries if self._alive(key, item))
