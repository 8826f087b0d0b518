"""Blocks of the prefix index that nobody pins, and which of them is given up first.

The order is: the lowest priority, then blocks that a sequence let fall out of its window, then the least recently used,
and of one use the deepest first, so that chains shrink from their ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from headrace.core.retention import DEFAULT_PRIORITY

from .lazy_heap import LazyHeap

if TYPE_CHECKING:
    from .prefix_index import Node


class Rank(NamedTuple):
    """Place among the idle blocks of a group; the smallest goes first."""

    priority: int
    is_fresh: bool
    """Not fallen out of a window."""
    tick: int
    """Use that it was part of."""
    height: int
    """Minus the entry's depth."""


class Victims:
    """A queue for each group. ``Node.idle_since`` has each block's rank."""

    def __init__(self, n_groups: int) -> None:
        self._queues: list[LazyHeap[Node]] = [
            LazyHeap(lambda rank, node, g=g: node.idle_since[g] is rank) for g in range(n_groups)
        ]
        self.tick = 0
        """Counts uses: what is added later was used later."""

    def add(self, node: Node, group: int, *, stale: bool = False) -> None:
        """``stale``: it fell out of a window. What somebody wants kept is worth as much all the same: others may go on
        from there."""
        is_fresh = not stale or node.priority > DEFAULT_PRIORITY
        self._put(node, group, Rank(node.priority, is_fresh, self.tick, -node.depth))

    def remove(self, node: Node, group: int) -> None:
        """It is pinned, or gone; nothing happens if it was not here."""
        if node.idle_since[group] is not None:
            node.idle_since[group] = None
            self._queues[group].died()

    def touch(self, node: Node) -> None:
        """Idle blocks of the entry count as used now."""
        for group, rank in enumerate(node.idle_since):
            if rank is not None:
                self.remove(node, group)
                self.add(node, group)

    def reorder(self, node: Node) -> None:
        """The entry has another priority."""
        for group, rank in enumerate(node.idle_since):
            if rank is not None:
                self.remove(node, group)
                is_fresh = rank.is_fresh or node.priority > DEFAULT_PRIORITY
                self._put(node, group, Rank(node.priority, is_fresh, rank.tick, rank.height))

    def _put(self, node: Node, group: int, rank: Rank) -> None:
        node.idle_since[group] = rank
        self._queues[group].push(rank, node)

    @property
    def oldest(self) -> int | None:
        """When the block that would be given up first was used last: -1 for one that is worth less than others of its
        age, and later than now for one that is worth more. None if there is none."""
        tops = [top[0] for top in map(LazyHeap.peek, self._queues) if top is not None]
        if not tops:
            return None
        rank = min(tops)
        if rank.priority > DEFAULT_PRIORITY:
            return self.tick + 1
        return rank.tick if rank.is_fresh and rank.priority == DEFAULT_PRIORITY else -1

    def first(self, group: int) -> tuple[Node, int] | None:
        """(entry, group) of the block to give up, of ``group`` rather than of others; None if there is none."""
        best: tuple[int, bool, bool, int] | None = None
        victim: tuple[Node, int] | None = None
        for other, queue in enumerate(self._queues):
            top = queue.peek()
            if top is None:
                continue
            rank, node = top
            order = (rank.priority, rank.is_fresh, other != group, rank.tick)
            if best is None or order < best:
                best, victim = order, (node, other)
        return victim

    def queued(self, group: int) -> set[int]:
        """Ids of the entries whose block of the group is here: for checks."""
        return {id(node) for _, node in self._queues[group].live()}
