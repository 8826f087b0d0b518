"""The tiers below the arena: blocks that had to make room go to host memory, from there to disk, and come back.

Numbers only, like the rest of the cache: what is decided here while a step is planned is a list of moves, which the
worker makes in this order before the step's rows. So a place can be given on as soon as the move that reads it is in
the list. A block is in one place at a time.

    arena --offload--> host --spill--> disk          onboarding cannot fail, so a hit on the host tier is used at once;
    arena <--onboard-- host <--fetch-- disk          a fetch may, so a sequence waits until the step that made it landed
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.core.errors import IntegrityError
from headrace.core.plan import BlockMove, MoveKind

from .arena import ArenaLayout, TierSizes, tier_layout
from .pool import BlockPool

if TYPE_CHECKING:
    from .prefix_index import Node

log = logging.getLogger("headrace")

_ANY_PRIORITY = 100
COUNTERS = ("blocks_offloaded", "blocks_onboarded", "blocks_spilled", "blocks_fetched", "disk_failures")


class Kept:
    """One block of an entry of the index, below the arena."""

    __slots__ = ("arrives", "from_disk", "group", "is_alive", "level", "node", "on_disk", "slot")

    def __init__(self, node: Node, group: int, slot: int) -> None:
        self.node = node
        self.group = group
        self.slot = slot
        """Block of the tier that it is in."""
        self.on_disk = False
        self.arrives: int | None = None
        """Batch of the fetch that brings it to the host, until that has landed."""
        self.from_disk = False
        """It has been on disk since it left the arena."""
        self.is_alive = True
        self.level = 0
        """Priority that it is filed under while it can be pushed out."""

    @property
    def is_ready(self) -> bool:
        """True if it can be onboarded now."""
        return not self.on_disk and self.arrives is None


@dataclass(frozen=True, slots=True)
class MoveBatch:
    """The moves of one step, and whom they concern."""

    number: int
    moves: tuple[BlockMove, ...]
    watched: tuple[tuple[int, Kept], ...]
    """Place in ``moves`` and block of each move that may fail."""


class _Idle:
    """What can be pushed out of a tier: that of the lowest priority first, then that which was used least recently."""

    def __init__(self) -> None:
        self._levels: dict[int, OrderedDict[Kept, None]] = {}

    def __contains__(self, kept: Kept) -> bool:
        return kept in self._levels.get(kept.level, ())

    def __len__(self) -> int:
        return sum(map(len, self._levels.values()))

    def add(self, kept: Kept) -> None:
        kept.level = kept.node.priority
        self._levels.setdefault(kept.level, OrderedDict())[kept] = None

    def remove(self, kept: Kept) -> None:
        """Nothing happens if it is not here."""
        level = self._levels.get(kept.level)
        if level is not None:
            level.pop(kept, None)
            if not level:
                del self._levels[kept.level]

    def first(self, most: int) -> Kept | None:
        """What goes first, if its priority is at most ``most``."""
        lowest = min(self._levels, default=most + 1)
        return None if lowest > most else next(iter(self._levels[lowest]))


class _Store:
    """Places of one tier, and what can be pushed out of it."""

    def __init__(self, layout: ArenaLayout) -> None:
        self.pool = BlockPool(layout)
        self.idle = _Idle()

    def free(self, kept: Kept) -> None:
        self.idle.remove(kept)
        self.pool.unpin(kept.group, kept.slot)


class Tiers:
    """Host tier and disk tier. Without sectors they keep nothing, and every call about what is kept is a mistake.

    Args:
        arena: the layout whose sectors the tiers' are cut like.
        on_lost: told of a block that is gone for good.
        on_moved: told of one that is in another tier now.
        counters: gets those of ``COUNTERS``.
    """

    def __init__(
        self,
        arena: ArenaLayout,
        sizes: TierSizes,
        on_lost: Callable[[Kept], None],
        on_moved: Callable[[Kept], None],
        counters: Counter[str],
    ) -> None:
        self.n_sectors = sizes.host, sizes.disk
        self._on_moved = on_moved
        self._host = _Store(tier_layout(arena, sizes.host))
        self._disk = _Store(tier_layout(arena, sizes.disk))
        self._disk_is_open = sizes.disk > 0
        self._on_lost = on_lost
        self._counters = counters
        counters.update(dict.fromkeys(COUNTERS, 0))
        self._number = 0
        self._moves: list[BlockMove] = []
        self._watched: list[tuple[int, Kept]] = []
        self._arriving = 0
        self._landed: list[bytes] = []

    # Down.

    def offload(self, node: Node, group: int, block: int) -> Kept | None:
        """Keeps a block of the arena that nobody pins and that is about to be given up; None if there is no room but in
        place of what is worth more."""
        slot = self._room_on_host(group, node.priority)
        if slot is None:
            return None
        self._move(MoveKind.OFFLOAD, group, block, slot)
        self._counters["blocks_offloaded"] += 1
        kept = Kept(node, group, slot)
        self._host.idle.add(kept)
        return kept

    def _room_on_host(self, group: int, priority: int) -> int | None:
        """A place, in place of what is worth no more than ``priority`` if need be."""
        host = self._host
        while not host.pool.has_free(group):
            first = host.idle.first(priority)
            if first is None:
                return None
            self._push_out(first)
        return host.pool.take(group)

    def _push_out(self, kept: Kept) -> None:
        """From the host to the disk, or away."""
        self._host.idle.remove(kept)
        slot = self._room_on_disk(kept.group, kept.node.priority)
        if slot is None:
            self._lose(self._host, kept)
            return
        self._move(MoveKind.SPILL, kept.group, kept.slot, slot, kept)
        self._counters["blocks_spilled"] += 1
        self._host.free(kept)
        kept.slot, kept.on_disk = slot, True
        self._disk.idle.add(kept)
        self._on_moved(kept)

    def _room_on_disk(self, group: int, priority: int) -> int | None:
        disk = self._disk
        if not self._disk_is_open:
            return None
        while not disk.pool.has_free(group):
            first = disk.idle.first(priority)
            if first is None:
                return None
            self._lose(disk, first)
        return disk.pool.take(group)

    def _lose(self, store: _Store, kept: Kept) -> None:
        store.free(kept)
        kept.is_alive = False
        self._on_lost(kept)

    # Up.

    def claim(self, wanted: Iterable[Kept]) -> None:
        """They are about to be used: nothing pushes them out before."""
        for kept in wanted:
            self._host.idle.remove(kept)

    def onboard(self, kept: Kept, block: int) -> None:
        """Copies a claimed block to ``block`` of the arena. Then it is discarded, or released."""
        self._move(MoveKind.ONBOARD, kept.group, kept.slot, block)
        self._counters["blocks_onboarded"] += 1

    def release(self, kept: Kept) -> None:
        """A claimed block stays here."""
        self._host.idle.add(kept)

    def discard(self, kept: Kept) -> None:
        """It is in the arena again, and not needed here any more."""
        (self._disk if kept.on_disk else self._host).free(kept)
        kept.is_alive = False

    def fetch(self, wanted: Sequence[Kept]) -> bytes | None:
        """Starts to bring blocks from disk to the host, as many of the first as there is room for.

        Returns what to wait for (see ``take_landed``), or None if not even the first could be fetched.
        """
        last = max((kept.arrives for kept in wanted if kept.arrives is not None), default=None)
        missing = [kept for kept in wanted if kept.on_disk]
        for kept in missing:
            self._disk.idle.remove(kept)
        for kept in missing:
            # Somebody waits for it: it goes before all that is only kept.
            slot = self._room_on_host(kept.group, _ANY_PRIORITY)
            if slot is None:
                self._disk.idle.add(kept)
                continue
            self._move(MoveKind.FETCH, kept.group, kept.slot, slot, kept)
            self._counters["blocks_fetched"] += 1
            self._disk.free(kept)
            kept.slot, kept.on_disk, kept.arrives = slot, False, self._number
            self._arriving += 1
            last = self._number
        return None if last is None else _token(last)

    def reorder(self, node: Node) -> None:
        """The entry has another priority."""
        for kept in filter(None, node.kept):
            idle = (self._disk if kept.on_disk else self._host).idle
            if kept in idle:
                idle.remove(kept)
                idle.add(kept)

    # Steps.

    def _move(self, kind: MoveKind, group: int, src: int, dst: int, watched: Kept | None = None) -> None:
        if watched is not None:
            self._watched.append((len(self._moves), watched))
        self._moves.append(BlockMove(kind, group, src, dst))

    @property
    def n_moves(self) -> int:
        """Moves that no step has taken along."""
        return len(self._moves)

    def take(self) -> MoveBatch:
        """The moves since the last call: they go along with the next step, whichever it is."""
        batch = MoveBatch(self._number, tuple(self._moves), tuple(self._watched))
        if self._moves:
            self._moves, self._watched = [], []
            self._number += 1
        return batch

    def settle(self, batch: MoveBatch, failed: Iterable[int]) -> None:
        """The step that took the moves along has landed; ``failed``: places of those that were not made."""
        if not batch.watched:
            return
        gone = set(failed)
        for place, kept in batch.watched:
            move = batch.moves[place]
            self._counters["disk_failures"] += place in gone
            if move.kind is MoveKind.FETCH:
                self._land(kept, batch.number, place in gone)
            elif place in gone:
                self._close_disk()
                if kept.is_alive and kept.on_disk and kept.slot == move.dst:
                    self._lose(self._disk, kept)
        self._landed.append(_token(batch.number))

    def _land(self, kept: Kept, number: int, failed: bool) -> None:
        if kept.arrives != number:
            return
        kept.arrives = None
        self._arriving -= 1
        if not kept.is_alive:
            return
        if failed:
            self._lose(self._host, kept)
            return
        kept.from_disk = True
        self._host.idle.add(kept)
        self._on_moved(kept)

    def _close_disk(self) -> None:
        if self._disk_is_open:
            self._disk_is_open = False
            log.warning(
                "the disk tier of the KV cache takes no more blocks, since writing one failed; what it has stays"
            )

    def take_landed(self) -> list[bytes]:
        """What need not be waited for any more, since the last call."""
        landed, self._landed = self._landed, []
        return landed

    # Looking in.

    def stats(self) -> dict[str, int]:
        """Blocks kept, by tier."""
        return {"hostBlocks": len(self._host.idle) + self._arriving, "diskBlocks": len(self._disk.idle)}

    def check(self, nodes: Iterable[Node]) -> None:
        """Raises ``IntegrityError`` unless the tiers hold just what the entries of the index say."""
        held: list[set[tuple[int, int]]] = [set(), set()]
        for node in nodes:
            for kept in node.kept:
                if kept is None:
                    continue
                if not kept.is_alive or kept.node is not node or node.kept[kept.group] is not kept:
                    raise IntegrityError(f"an entry has a block of group {kept.group} of another, or one that is gone")
                store = self._disk if kept.on_disk else self._host
                if (kept in store.idle) == (kept.arrives is not None):
                    raise IntegrityError(f"a kept block of group {kept.group} is not where it can be pushed out")
                held[kept.on_disk].add((kept.group, kept.slot))
        for store, mine in zip((self._host, self._disk), held, strict=True):
            store.pool.check()
            taken = {(g, block) for g, pins in enumerate(store.pool.pins) for block, n in enumerate(pins) if n}
            if taken != mine:
                raise IntegrityError(f"tier places {sorted(taken ^ mine)} are taken by nobody, or by two")


def _token(number: int) -> bytes:
    return b"arrival %d" % number + bytes(16)
