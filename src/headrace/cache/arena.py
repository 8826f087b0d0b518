"""One arena for all groups: groups draw sectors from it, and cut a sector into blocks of their own size.

    sector        0 (reserved)         1                    2                    3
    group 0   [n |  |  |  |  |  ][ 6| 7| 8| 9|10|11][                   ][18|19|..         3 .. 6 blocks per sector,
    group 1   [n       |        ][                 ][   4     |    5    ][                 a larger block: 2 per sector

Block ids of a group are ``sector * blocks_per_sector + i``, so the worker sees the arena per group as an array of
``n_sectors * blocks_per_sector`` blocks. Sector 0 is never drawn: block 0 of every group is the null block, where
padding rows write and which no row reads. The idea of sectors is Jenga's (arXiv 2503.18292).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from headrace.core.errors import ConfigError

from .groups import CacheGroup
from .specs import blocks_of

NULL_BLOCK = 0
"""In every group: written by padding rows, read by none."""

_ALIGNMENT = 64
_COUNTS = range(1, 17)


@dataclass(frozen=True, slots=True)
class GroupLayout:
    """How one group cuts a sector. Sizes in bytes."""

    block_bytes: int
    stride_bytes: int
    """From one block to the next: block_bytes, or a little more where sizes do not divide the sector."""
    blocks_per_sector: int


@dataclass(frozen=True, slots=True)
class ArenaLayout:
    """The arena as the worker lays it out and the host counts it."""

    sector_bytes: int
    n_sectors: int
    """Sector 0, the null sector, included."""
    groups: tuple[GroupLayout, ...]

    @property
    def nbytes(self) -> int:
        return self.sector_bytes * self.n_sectors

    def n_blocks(self, group: int) -> int:
        """Rows of the group's view of the arena, the null sector's included."""
        return self.n_sectors * self.groups[group].blocks_per_sector


NO_ARENA = ArenaLayout(_ALIGNMENT, 1, ())
"""For a model that keeps no past: the null sector."""


@dataclass(frozen=True, slots=True)
class TierSizes:
    """Sectors of the tiers below the arena; 0: there is no such tier."""

    host: int = 0
    disk: int = 0


NO_TIERS = TierSizes()


def with_spare(arena: ArenaLayout, wanted: Sequence[int]) -> tuple[ArenaLayout, list[range]]:
    """The arena with ``wanted[g]`` more blocks of each group behind it, which nobody hands out; and their ids."""
    n_sectors, spare = arena.n_sectors, []
    for count, group in zip(wanted, arena.groups, strict=True):
        first = n_sectors * group.blocks_per_sector
        spare.append(range(first, first + count))
        n_sectors += -(-count // group.blocks_per_sector)
    return replace(arena, n_sectors=n_sectors), spare


def tier_layout(arena: ArenaLayout, n_sectors: int) -> ArenaLayout:
    """A tier of ``n_sectors`` sectors, cut as those of the arena are."""
    return replace(arena, n_sectors=1 + n_sectors)


def tier_sectors(arena: ArenaLayout, n_bytes: int) -> int:
    """Sectors of a tier of ``n_bytes``: rounded up to whole ones, and to two for each group."""
    return max(2 * len(arena.groups), -(-n_bytes // arena.sector_bytes)) if n_bytes else 0


def plan_arena(groups: Sequence[CacheGroup], budget_bytes: int) -> ArenaLayout:
    """The largest arena within ``budget_bytes``. Raises ``ConfigError`` if none fits beside the null sector."""
    layout = _cut_sector(groups)
    n_sectors = budget_bytes // layout.sector_bytes
    if n_sectors < 2:
        raise ConfigError(
            f"the KV cache may take {budget_bytes:,} bytes, but the least is {2 * layout.sector_bytes:,}"
            " (32 tokens and the null block); raise KvCacheConfig.max_tokens or free memory"
        )
    return replace(layout, n_sectors=n_sectors)


def arena_for_tokens(groups: Sequence[CacheGroup], n_tokens: int) -> ArenaLayout:
    """The arena that holds ``n_tokens`` tokens in every group, and the null sector."""
    if not groups:
        return NO_ARENA
    if n_tokens < 1:
        raise ConfigError(f"a KV cache of {n_tokens} tokens; KvCacheConfig.max_tokens must be at least 1")
    layout = _cut_sector(groups)
    blocks = blocks_of(n_tokens)
    return replace(layout, n_sectors=1 + sum(-(-blocks // group.blocks_per_sector) for group in layout.groups))


def _cut_sector(groups: Sequence[CacheGroup]) -> ArenaLayout:
    """The sector size, up to 16 of the largest blocks, with the least bytes lost; the smaller one on a tie."""
    sizes = [group.block_bytes for group in groups]
    largest = max(sizes)
    exact = [largest // size for size in sizes]
    # Counts without a small common multiple would round the sector up by much: powers of two always have one.
    binary = [1 << (count.bit_length() - 1) for count in exact]
    candidates = [_sector_of(sizes, [count * largest // size for size in sizes]) for count in _COUNTS]
    candidates += [_sector_of(sizes, [count * each for each in binary]) for count in _COUNTS]
    return min(candidates, key=lambda layout: (_overhead(layout), layout.sector_bytes))


def _sector_of(sizes: Sequence[int], counts: Sequence[int]) -> ArenaLayout:
    """The smallest sector that holds ``counts[g]`` blocks of each group at a whole and aligned stride."""
    needed = max(count * size for count, size in zip(counts, sizes, strict=True))
    unit = math.lcm(*counts) * _ALIGNMENT
    sector = -(-needed // unit) * unit
    groups = tuple(GroupLayout(size, sector // n, n) for size, n in zip(sizes, counts, strict=True))
    return ArenaLayout(sector, 0, groups)


def _overhead(layout: ArenaLayout) -> float:
    """Bytes that 32 tokens of all groups take, over those that they need."""
    return sum(group.stride_bytes for group in layout.groups) / sum(group.block_bytes for group in layout.groups)
