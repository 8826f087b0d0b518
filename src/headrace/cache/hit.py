"""What a look-up in the prefix index found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.core.outputs import MissReason
from headrace.core.plan import BLOCK_TOKENS

from .cross import CrossHit

if TYPE_CHECKING:
    from .prefix_index import Node
    from .tiers import Kept


@dataclass(frozen=True, slots=True)
class Hit:
    """A prefix that can be resumed at ``length`` tokens. Valid until the cache changes; it holds nothing itself."""

    identity: str | None
    length: int
    n_whole: int
    """Whole blocks of it; the tokens after them come from copying the blocks of ``source``."""
    first: list[int]
    """Number of the first block that each group still reads."""
    blocks: list[list[int]]
    """Whole blocks to be shared, by group, from number ``first[group]`` on; 0 for one that is in a tier below."""
    path: list[Node]
    """Entries of the whole blocks."""
    source: Node | None
    node: Node | None
    """Entry of the last whole block (or the root)."""
    awaited: bytes | None
    """Key of the next block, if a running sequence is computing it now."""
    miss: MissReason | None
    """Why it is not longer; None if it is as long as can be."""
    cross: CrossHit | None = None
    """What is there of the request's media; None: it has none."""

    @property
    def n_below(self) -> list[int]:
        """Whole blocks of each group that have to be brought back to the arena."""
        return [row.count(0) for row in self.blocks]

    def below(self) -> list[Kept]:
        """Those blocks, by group, in order."""
        kept = [
            self.path[first + place].kept[group]
            for group, (first, row) in enumerate(zip(self.first, self.blocks, strict=True))
            for place, block in enumerate(row)
            if not block
        ]
        return [one for one in kept if one is not None]

    @property
    def partial_tokens(self) -> int:
        """Tokens that come from the copied block."""
        return self.length - self.n_whole * BLOCK_TOKENS


def no_hit(identity: str | None, n_groups: int, miss: MissReason | None) -> Hit:
    """Nothing found, or nothing looked for."""
    return Hit(identity, 0, 0, [0] * n_groups, [[] for _ in range(n_groups)], [], None, None, None, miss)
