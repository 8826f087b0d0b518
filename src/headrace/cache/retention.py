"""What entries of the prefix index are worth: what requests have asked for, until its time has passed.

An entry has the highest priority that was asked for it. One is never worth less than those after it: they are useless
without it, and so whoever asks for one asks as much for all before it.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from headrace.core.clock import Clock
from headrace.core.retention import DEFAULT_PRIORITY, Ask

from .events import Events, NoEvents
from .lazy_heap import LazyHeap
from .tiers import Tiers
from .victims import Victims

if TYPE_CHECKING:
    from .prefix_index import Node

_NEVER = float("inf")


class Retention:
    """Sets ``Node.priority`` and ``Node.expires``, and keeps the queues of those who give up in their order.

    Args:
        counters: gets ``prioritised_blocks``.
    """

    def __init__(
        self, clock: Clock, victims: Victims, tiers: Tiers, counters: Counter[str], events: Events | NoEvents
    ) -> None:
        self.is_used = False
        """Somebody has asked for another priority than the usual one."""
        self._clock = clock
        self._victims = victims
        self._tiers = tiers
        self._counters = counters
        self._events = events
        self._expiring: LazyHeap[Node] = LazyHeap(lambda at, node: node.alive and node.expires is at)

    def begin(self, node: Node, ask: Ask) -> None:
        """A new entry, which nobody else has asked for anything."""
        self._set(node, ask.priority, self._end_of(ask))

    def ask(self, node: Node, ask: Ask) -> None:
        """Somebody uses the entry: it is worth that much, or what it was before if that is more."""
        expires = self._end_of(ask)
        if (ask.priority, expires or _NEVER) > (node.priority, node.expires or _NEVER):
            self._set(node, ask.priority, expires)

    def end(self, node: Node) -> None:
        """The entry is gone."""
        if node.expires is not None:
            self._expiring.died()

    def expire(self) -> None:
        """Entries whose time has passed are worth the usual, or as much as what comes after them."""
        while (top := self._expiring.peek()) is not None and top[0] <= self._clock.now():
            node = top[1]
            heir = max(node.children, key=lambda child: (child.priority, child.expires or _NEVER), default=None)
            if heir is None or heir.priority <= DEFAULT_PRIORITY:
                self._set(node, _usual(node), None)
            else:
                self._set(node, heir.priority, heir.expires)

    def _end_of(self, ask: Ask) -> float | None:
        return None if ask.duration is None else self._clock.now() + ask.duration

    def _set(self, node: Node, priority: int, expires: float | None) -> None:
        if node.expires is not None:
            node.expires = None
            self._expiring.died()
        if expires is not None:
            node.expires = expires
            self._expiring.push(expires, node)
        if priority == node.priority:
            return
        self.is_used = True
        self._counters["prioritised_blocks"] += priority != DEFAULT_PRIORITY
        node.priority = priority
        self._victims.reorder(node)
        self._tiers.reorder(node)
        self._events.note(node)


def _usual(node: Node) -> int:
    """Priority of an entry that nobody asks anything for: no more than that of the one before it."""
    parent = node.parent
    return DEFAULT_PRIORITY if parent is None or parent.parent is None else min(DEFAULT_PRIORITY, parent.priority)
