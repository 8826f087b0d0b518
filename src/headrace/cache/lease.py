"""``BlockLease``: what keeps blocks from being given to somebody else."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from headrace.core.retention import USUAL_ASKS

if TYPE_CHECKING:
    from .cross import CrossEntry
    from .prefix_index import Node


class BlockLease:
    """The blocks of one sequence, pinned once, however many hold the lease.

    The sequence holds it while it runs and every step in flight holds it until it is applied; the blocks are let go
    when the last holder is gone. So a step costs one addition a sequence, not one a block.

    Groups cover the same token range at the end, ``n_blocks`` blocks from position 0; at the front a group may have
    let go of blocks that fell out of its window: ``blocks[g][0]`` is block number ``first[g]`` of the sequence.
    """

    __slots__ = (
        "asks",
        "blocks",
        "first",
        "has_twins",
        "holders",
        "identity",
        "media",
        "n_blocks",
        "n_found",
        "n_indexed",
        "n_shared",
        "node",
        "passed",
        "pending",
        "retired",
    )

    def __init__(self, identity: str | None, first: list[int], blocks: list[deque[int]], n_blocks: int) -> None:
        self.identity = identity
        """What the prefix is shared under: the salt."""
        self.asks = USUAL_ASKS
        """What its blocks are worth to the request."""
        self.first = first
        self.blocks = blocks
        self.n_blocks = n_blocks
        self.holders = 1
        self.retired = False
        """True when the sequence has let go; steps in flight may still hold."""
        self.node: Node | None = None
        """The index entry of the last block that is known to the index; the next block becomes its child."""
        self.n_indexed = 0
        self.n_shared = 0
        """Leading blocks, all written, that beams of the same request may hold too."""
        self.n_found = 0
        """Blocks that were in the index when the sequence was admitted."""
        self.passed: dict[int, tuple[int, int]] = {}
        """The last checkpoint that the sequence has made and left behind: number and block, by group of states."""
        self.pending: bytes | None = None
        """Key of the block that this sequence computes next, if others may wait for it."""
        self.media: CrossEntry | None = None
        """Blocks of encoded media, shared with others."""
        self.has_twins = False
        """True if some block of this sequence is in the index as another block of equal content."""

    def hold(self) -> None:
        """A step in flight holds the lease until ``CacheManager.drop``."""
        self.holders += 1

    def block_at(self, group: int, number: int) -> int:
        """Block id of the sequence's block ``number``; 0 (the null block) if it has fallen out of the window."""
        offset = number - self.first[group]
        return self.blocks[group][offset] if offset >= 0 else 0
