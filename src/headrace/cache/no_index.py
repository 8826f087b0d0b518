"""The prefix index of a cache without reuse: it finds nothing and keeps nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from headrace.core.errors import IntegrityError
from headrace.core.outputs import MissReason

from .events import NoEvents
from .hit import Hit, no_hit
from .lease import BlockLease

if TYPE_CHECKING:
    from .prefix_index import Node
    from .tiers import Kept


class NoIndex:
    """Null object for ``PrefixIndex``. No block is ever cached, so the calls about cached blocks are mistakes."""

    n_entries = 0
    now = 0
    oldest = None

    def __init__(self, n_groups: int) -> None:
        self._n_groups = n_groups
        self.events = NoEvents()

    def lookup(self, identity: str | None, tokens: Sequence[int], limit: int, *, with_disk: bool) -> Hit:
        return no_hit(identity, self._n_groups, MissReason.DISABLED)

    def extend(self, lease: BlockLease, tokens: Sequence[int], n_blocks: int) -> None:
        lease.n_indexed = n_blocks

    def announce(self, lease: BlockLease, tokens: Sequence[int]) -> None:
        pass

    def withdraw(self, lease: BlockLease) -> None:
        pass

    def take_resolved(self) -> list[bytes]:
        return []

    def adopt(self, node: Node, group: int, block: int) -> None:
        raise IntegrityError(f"block {block} of group {group} comes back to an index that keeps nothing")

    def lost(self, kept: Kept) -> None:
        raise IntegrityError("a block of a tier is lost, but nothing is kept")

    def retain(self, lease: BlockLease) -> None:
        pass

    def expire(self) -> None:
        pass

    def moved(self, kept: Kept) -> None:
        raise IntegrityError("a block of a tier has moved, but nothing is kept")

    def busy(self, group: int, block: int) -> None:
        raise IntegrityError(f"block {block} of group {group} counts as cached, but nothing is kept")

    def idle(self, group: int, block: int, *, stale: bool = False) -> None:
        raise IntegrityError(f"block {block} of group {group} counts as cached, but nothing is kept")

    def next_use(self) -> None:
        pass

    def touch(self, node: Node | None) -> None:
        pass

    def thin(self, node: Node | None, group: int, number: int, block: int) -> None:
        pass

    def evict(self, group: int) -> bool:
        return False

    def check(self) -> None:
        pass
