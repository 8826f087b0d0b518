"""Blocks of encoded media: written once, shared by all sequences that have the same media in the same order.

They lie in groups of their own (``CrossKV``) and belong to no tokens. Those that no lease pins are kept until memory is
short.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from headrace.core.errors import IntegrityError
from headrace.core.media import EncodedMedia

from .pool import BlockPool
from .specs import blocks_of

Key = tuple[str | None, bytes]
"""Salt, and which media."""


@dataclass(frozen=True, slots=True, eq=False)
class CrossEntry:
    """The blocks of one list of media: the same number in every group."""

    key: Key
    blocks: dict[int, tuple[int, ...]]
    """By group."""


@dataclass(frozen=True, slots=True)
class CrossHit:
    """What is there of a request's media. Valid until the cache changes."""

    key: Key
    n_blocks: int
    """Of each group."""
    entry: CrossEntry | None
    """None: they are to be encoded."""


class CrossCache:
    """Entries by key.

    Args:
        groups: those that hold encoded media, by index.
        n_groups: of the whole cache.
        keeps: entries outlive their sequences, and are shared.
    """

    def __init__(self, groups: Sequence[int], n_groups: int, pool: BlockPool, *, keeps: bool) -> None:
        self._groups = tuple(groups)
        self._n_groups = n_groups
        self._pool = pool
        self._keeps = keeps
        self._entries: dict[Key, CrossEntry] = {}
        self._idle: OrderedDict[Key, int] = OrderedDict()
        """Entries that nobody pins, and when they were used last; the oldest first."""

    def lookup(self, salt: str | None, media: EncodedMedia | None) -> CrossHit | None:
        """None if the sequence has no media, or the model keeps nothing of them."""
        if media is None or not self._groups:
            return None
        key = (salt, media.key)
        return CrossHit(key, blocks_of(media.n_keys), self._entries.get(key))

    def wanted(self, media: EncodedMedia | None) -> list[int]:
        """Blocks of each group of the cache that the media take."""
        counts = [0] * self._n_groups
        if media is not None:
            for group in self._groups:
                counts[group] = blocks_of(media.n_keys)
        return counts

    def missing(self, hit: CrossHit | None) -> list[int]:
        """Blocks of each group of the cache that are to be taken."""
        counts = [0] * self._n_groups
        if hit is not None and hit.entry is None:
            for group in self._groups:
                counts[group] = hit.n_blocks
        return counts

    def blocks(self, entry: CrossEntry | None) -> list[tuple[int, int]]:
        """(group, block) of all its blocks."""
        return [] if entry is None else [(group, block) for group, row in entry.blocks.items() for block in row]

    def enter(self, hit: CrossHit, taken: Sequence[Sequence[int]]) -> CrossEntry:
        """A new entry of blocks just taken (``taken[g]``), pinned once by that."""
        entry = CrossEntry(hit.key, {group: tuple(taken[group][: hit.n_blocks]) for group in self._groups})
        if self._keeps:
            self._entries[hit.key] = entry
            for group, block in self.blocks(entry):
                self._pool.keep(group, block)
        return entry

    def pin(self, entry: CrossEntry) -> None:
        """One more lease."""
        self._idle.pop(entry.key, None)
        for group, block in self.blocks(entry):
            self._pool.pin(group, block)

    def unpin(self, entry: CrossEntry, now: int) -> None:
        """One lease less; ``now`` counts uses of the cache."""
        idle = [self._pool.unpin(group, block) for group, block in self.blocks(entry)]
        if idle and all(idle):
            self._idle[entry.key] = now

    @property
    def oldest(self) -> int | None:
        """When the entry that would be given up first was used last; None if there is none."""
        return next(iter(self._idle.values()), None)

    def evict(self) -> bool:
        """Gives up the entry that was used longest ago. False if there is none."""
        if not self._idle:
            return False
        key, _ = self._idle.popitem(last=False)
        for group, block in self.blocks(self._entries.pop(key)):
            self._pool.forget(group, block)
        return True

    def check(self) -> None:
        """Raises ``IntegrityError`` if entries and the marks of the pool do not agree."""
        for group in self._groups:
            mine = [block for entry in self._entries.values() for block in entry.blocks[group]]
            if len(set(mine)) != len(mine) or sum(self._pool.cached[group]) != len(mine):
                raise IntegrityError(f"group {group}: {len(mine)} blocks of encoded media, others are marked")
        for key, entry in self._entries.items():
            pinned = {self._pool.pins[group][block] > 0 for group, block in self.blocks(entry)}
            if pinned != {key not in self._idle}:
                raise IntegrityError(f"encoded media {key}: pinned {pinned}, idle {key in self._idle}")
