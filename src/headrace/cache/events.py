"""Events of the prefix index: what has come, gone or moved, for those who send requests to where their prefix is.

Names follow TensorRT-LLM's events. What changes within a step is told once, as it stands at its end; a buffer of fixed
size keeps it until it is asked for, and says how many events it had no room for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from headrace.core.errors import RequestError

if TYPE_CHECKING:
    from .prefix_index import Node

Event = dict[str, Any]


class NoEvents:
    """Nobody is told."""

    def note(self, node: Node) -> None:
        pass

    def flush(self) -> None:
        pass

    def drain(self) -> list[Event]:
        raise RequestError(
            "no events are kept; start with KvCacheConfig(event_buffer_max_size=...) above 0", param="kv_cache_events"
        )


class Events:
    """A buffer of at most ``max_size`` events.

    Args:
        sectors: of the arena and the tiers below it.
        nodes: the entries of the index, by key.
        level_of: 0, 1, 2 for an entry in the arena, on the host, on disk; None for one that no prefix can go through.
    """

    def __init__(
        self,
        max_size: int,
        sectors: Sequence[int],
        nodes: Mapping[bytes, Node],
        level_of: Callable[[Node], int | None],
    ) -> None:
        self._max_size = max_size
        self._nodes = nodes
        self._level_of = level_of
        self._changed: dict[bytes, None] = {}
        self._told: dict[bytes, tuple[int, int]] = {}
        """Level and priority, as those who listen know them."""
        self._buffer: deque[Event] = deque()
        self._n_events = 0
        self._n_dropped = 0
        self._add({"type": "created", "num_blocks_per_cache_level": list(sectors)})

    def note(self, node: Node) -> None:
        """Something of the entry has changed, or it is gone."""
        self._changed[node.key] = None

    def flush(self) -> None:
        """Tells what has changed since the last call: first what is gone, then what is new, then what is different."""
        if not self._changed:
            return
        gone: list[bytes] = []
        new: list[Node] = []
        updated: list[Event] = []
        for key in self._changed:
            node, before = self._nodes.get(key), self._told.get(key)
            level = None if node is None else self._level_of(node)
            if node is None or level is None:
                if before is not None:
                    gone.append(key)
                    del self._told[key]
                continue
            self._told[key] = now = level, node.priority
            if before is None:
                new.append(node)
            elif now != before:
                updated.append(_updated(key, before, now))
        self._changed.clear()
        if gone:
            self._add({"type": "removed", "block_hashes": [key.hex() for key in gone]})
        for chain in _chains(new):
            self._add(self._stored(chain))
        for event in updated:
            self._add(event)

    def drain(self) -> list[Event]:
        """The events since the last call, oldest first. If some had to be dropped, the first says how many."""
        self.flush()
        events = list(self._buffer)
        if self._n_dropped:
            first = self._n_events - len(events) - self._n_dropped
            events.insert(0, {"event_id": first, "data": {"type": "dropped", "num_events": self._n_dropped}})
        self._buffer.clear()
        self._n_dropped = 0
        return events

    def _add(self, data: Event) -> None:
        if len(self._buffer) == self._max_size:
            self._buffer.popleft()
            self._n_dropped += 1
        self._buffer.append({"event_id": self._n_events, "data": data})
        self._n_events += 1

    def _stored(self, chain: Sequence[Node]) -> Event:
        first = chain[0].parent
        assert first is not None
        root = first
        while root.parent is not None:
            root = root.parent
        return {
            "type": "stored",
            "parent_hash": None if first is root else first.key.hex(),
            "root_hash": root.key.hex(),
            "blocks": [_block(node, *self._told[node.key]) for node in chain],
        }


def _block(node: Node, level: int, priority: int) -> Event:
    tokens = [{"type": "unique_token", "token_id": token, "token_extra_id": 0} for token in node.tokens]
    return {
        "type": "stored_block",
        "block_hash": node.key.hex(),
        "tokens": tokens,
        "cache_level": level,
        "priority": priority,
        "mm_keys": [],
    }


def _updated(key: bytes, before: tuple[int, int], now: tuple[int, int]) -> Event:
    event: Event = {"type": "updated", "block_hash": key.hex(), "cache_level": None, "priority": None}
    for name, old, new in zip(("cache_level", "priority"), before, now, strict=True):
        if old != new:
            event[name] = {"type": "event_diff", "old_value": old, "new_value": new}
    return event


def _chains(new: list[Node]) -> list[list[Node]]:
    """Entries one behind another, parents before children."""
    chains: dict[Node, list[Node]] = {}
    """By the last entry."""
    for node in sorted(new, key=lambda one: one.depth):
        chain = chains.pop(node.parent, []) if node.parent is not None else []
        chains[node] = [*chain, node]
    return list(chains.values())
