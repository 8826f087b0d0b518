"""The blocks of the arena: who holds each, and which are free.

A block is *pinned* while a lease holds it (sequences and steps in flight hold leases), *cached* while the prefix index
keeps it, and free when neither is so. Cached blocks that nobody pins can be given up at any time, so what can be had at
a moment is counted in two numbers: *open* sectors, in which nothing is pinned, and *loose* blocks, those not pinned in
a sector where others are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from headrace.core.errors import IntegrityError

from .arena import ArenaLayout

_NOBODY = -1


class BlockPool:
    """Reference counts, sectors and free lists. Every operation is O(1) but for ``fits`` with blocks to be pinned."""

    def __init__(self, layout: ArenaLayout) -> None:
        self.layout = layout
        self.per_sector = tuple(group.blocks_per_sector for group in layout.groups)
        n_groups, n_sectors = len(layout.groups), layout.n_sectors
        self.pins: list[list[int]] = [[0] * layout.n_blocks(group) for group in range(n_groups)]
        """Leases on each block, by group."""
        self.cached: list[bytearray] = [bytearray(layout.n_blocks(group)) for group in range(n_groups)]
        """1 where the prefix index keeps the block."""
        self.loose = [0] * n_groups
        self.n_open = n_sectors - 1
        self.n_taken = 0
        """Blocks ever handed out."""
        self._owner = [_NOBODY] * n_sectors
        self._pinned = [0] * n_sectors
        self._free_in: list[list[int]] = [[] for _ in range(n_sectors)]
        self._free_sectors = list(range(n_sectors - 1, 0, -1))
        # Sectors of a group that have free blocks: those with pinned blocks, and those with cached blocks only.
        self._shared: list[dict[int, None]] = [{} for _ in range(n_groups)]
        self._idle: list[dict[int, None]] = [{} for _ in range(n_groups)]

    # Asking.

    def fits(self, wanted: Sequence[int], to_pin: Iterable[tuple[int, int]] = ()) -> bool:
        """True if ``wanted[g]`` blocks of every group could be had, once the (group, block)s ``to_pin`` are pinned."""
        loose, n_open = self.loose, self.n_open
        opened: dict[int, int] = {}
        for group, block in to_pin:
            if self.pins[group][block]:
                continue
            if loose is self.loose:
                loose = list(loose)
            sector = block // self.per_sector[group]
            if self._pinned[sector] == 0 and sector not in opened:
                opened[sector] = group
                n_open -= 1
                loose[group] += self.per_sector[group]
            loose[group] -= 1
        return self.sectors_for(wanted, loose) <= n_open

    def sectors_for(self, wanted: Sequence[int], loose: Sequence[int]) -> int:
        """Sectors to open for ``wanted`` blocks when ``loose`` ones are there already."""
        short = 0
        for count, have, size in zip(wanted, loose, self.per_sector, strict=True):
            if count > have:
                short += -((have - count) // size)
        return short

    def has_free(self, group: int) -> bool:
        """True if ``take(group)`` needs no cached block to be given up."""
        return bool(self._shared[group] or self._idle[group] or self._free_sectors)

    def has_free_beside_pinned(self, group: int) -> bool:
        """True if ``take(group)`` opens no sector."""
        return bool(self._shared[group])

    # Doing.

    def take(self, group: int) -> int:
        """A free block, pinned once: from a sector in use if there is one, so that others stay whole."""
        if self._shared[group]:
            sector = next(iter(self._shared[group]))
        elif self._idle[group]:
            sector = next(iter(self._idle[group]))
        elif self._free_sectors:
            sector = self._free_sectors.pop()
            self._owner[sector] = group
            size = self.per_sector[group]
            self._free_in[sector] = list(range((sector + 1) * size - 1, sector * size - 1, -1))
        else:
            raise IntegrityError(
                f"no free block of cache group {group}: fits() was not asked, or its answer not heeded"
            )
        block = self._free_in[sector].pop()
        self.n_taken += 1
        self._pin_first(group, block, sector)
        return block

    def pin(self, group: int, block: int) -> None:
        """One more lease on a block that is pinned or cached."""
        pins = self.pins[group]
        if pins[block]:
            pins[block] += 1
        elif self.cached[group][block]:
            self._pin_first(group, block, block // self.per_sector[group])
        else:
            raise IntegrityError(f"block {block} of cache group {group} is pinned although it is free")

    def unpin(self, group: int, block: int) -> bool:
        """One lease less. True if nobody pins the block any more but the index keeps it."""
        pins = self.pins[group]
        if pins[block] <= 0:
            raise IntegrityError(f"block {block} of cache group {group} is given back twice")
        pins[block] -= 1
        if pins[block]:
            return False
        sector = block // self.per_sector[group]
        self._pinned[sector] -= 1
        if self._pinned[sector]:
            self.loose[group] += 1
        else:
            self.loose[group] -= self.per_sector[group] - 1
            self.n_open += 1
        if self.cached[group][block]:
            self._file(group, sector)
            return True
        self._free(group, block, sector)
        return False

    def keep(self, group: int, block: int) -> None:
        """The index keeps a block that is pinned."""
        if not self.pins[group][block] or self.cached[group][block]:
            raise IntegrityError(f"block {block} of cache group {group} enters the index unpinned, or a second time")
        self.cached[group][block] = 1

    def forget(self, group: int, block: int) -> None:
        """The index gives a block up; it is free if nobody pins it."""
        if not self.cached[group][block]:
            raise IntegrityError(f"block {block} of cache group {group} leaves the index, in which it is not")
        self.cached[group][block] = 0
        if not self.pins[group][block]:
            self._free(group, block, block // self.per_sector[group])

    def _pin_first(self, group: int, block: int, sector: int) -> None:
        self.pins[group][block] = 1
        if self._pinned[sector]:
            self.loose[group] -= 1
        else:
            self.loose[group] += self.per_sector[group] - 1
            self.n_open -= 1
        self._pinned[sector] += 1
        self._file(group, sector)

    def _free(self, group: int, block: int, sector: int) -> None:
        free = self._free_in[sector]
        free.append(block)
        if len(free) == self.per_sector[group]:
            free.clear()
            self._owner[sector] = _NOBODY
            self._free_sectors.append(sector)
        self._file(group, sector)

    def _file(self, group: int, sector: int) -> None:
        """Files the sector where ``take`` looks for it."""
        shared, idle = self._shared[group], self._idle[group]
        if not self._free_in[sector]:
            shared.pop(sector, None)
            idle.pop(sector, None)
        elif self._pinned[sector]:
            idle.pop(sector, None)
            shared[sector] = None
        else:
            shared.pop(sector, None)
            idle[sector] = None

    # Checking.

    def check(self) -> None:
        """Recounts everything from the pins and marks of the blocks. Raises ``IntegrityError``."""
        n_open, loose = 0, [0] * len(self.per_sector)
        free_sectors = set(self._free_sectors)
        if len(free_sectors) != len(self._free_sectors) or 0 in free_sectors:
            raise IntegrityError("a sector stands in the free list twice, or the null sector does")
        for sector in range(1, self.layout.n_sectors):
            group = self._owner[sector]
            if (group == _NOBODY) != (sector in free_sectors):
                raise IntegrityError(
                    f"sector {sector}: owned by group {group}, in the free list: {sector in free_sectors}"
                )
            pinned = 0 if group == _NOBODY else self._check_sector(group, sector)
            if pinned == 0:
                n_open += 1
            else:
                loose[group] += self.per_sector[group] - pinned
        if n_open != self.n_open or loose != self.loose:
            raise IntegrityError(
                f"open sectors {self.n_open}, counted {n_open}; loose blocks {self.loose}, counted {loose}"
            )
        for group, pins in enumerate(self.pins):
            owned = sum(
                1 for block, n in enumerate(pins) if n and self._owner[block // self.per_sector[group]] != group
            )
            if owned:
                raise IntegrityError(f"{owned} blocks of cache group {group} are pinned in sectors of others")

    def _check_sector(self, group: int, sector: int) -> int:
        """Pinned blocks of a drawn sector."""
        size = self.per_sector[group]
        blocks = range(sector * size, (sector + 1) * size)
        free = [block for block in blocks if not self.pins[group][block] and not self.cached[group][block]]
        if sorted(self._free_in[sector]) != free:
            raise IntegrityError(f"sector {sector} of group {group}: free {free}, listed {self._free_in[sector]}")
        pinned = sum(1 for block in blocks if self.pins[group][block])
        if pinned != self._pinned[sector]:
            raise IntegrityError(f"sector {sector} of group {group}: {pinned} pinned, counted {self._pinned[sector]}")
        shared, idle = sector in self._shared[group], sector in self._idle[group]
        if (shared, idle) != (bool(free and pinned), bool(free and not pinned)):
            raise IntegrityError(f"sector {sector} of group {group} is filed wrongly: shared {shared}, idle {idle}")
        return pinned
