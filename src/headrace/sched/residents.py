"""The running sequences: each has a slot of the worker and a lease of blocks. They get and lose both here only."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from operator import attrgetter

from headrace.cache.hit import Hit
from headrace.cache.lease import BlockLease
from headrace.cache.manager import CacheManager, Placement
from headrace.core.errors import IntegrityError
from headrace.core.sequence import Sequence, SequenceState

from .capacity import CapacityPolicy

_standing = attrgetter("standing")


class Residents:
    """Running sequences, highest standing first, and the free slots."""

    def __init__(self, n_slots: int, manager: CacheManager, capacity: CapacityPolicy) -> None:
        self._manager = manager
        self._capacity = capacity
        self._n_slots = n_slots
        self._free_slots = list(range(n_slots - 1, -1, -1))
        self._left: list[int] = []
        self._ordered: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._ordered)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._ordered)

    @property
    def n_free_slots(self) -> int:
        return len(self._free_slots)

    def enter(self, seq: Sequence, hit: Hit, end: int) -> Placement:
        """Gives ``seq`` a slot, the blocks of ``hit`` and new ones up to position ``end``."""
        slot = self._free_slots.pop()
        placement = self._manager.place(slot, hit, seq.keys, end, seq.request.asks)
        self._settle(seq, slot, placement.lease, hit.length)
        return placement

    def fork(self, parent: Sequence, seq: Sequence) -> Placement | None:
        """Gives ``seq`` a slot, and blocks of which it shares with ``parent`` those that are full. None if there is no
        slot, or no memory."""
        if not self._free_slots:
            return None
        placement = self._manager.fork(self._free_slots[-1], parent.lease, parent.computed)
        if placement is not None:
            self._settle(seq, self._free_slots.pop(), placement.lease, parent.computed)
        return placement

    def _settle(self, seq: Sequence, slot: int, lease: BlockLease, computed: int) -> None:
        seq.slot, seq.lease, seq.computed = slot, lease, computed
        seq.state = SequenceState.RUNNING
        insort(self._ordered, seq, key=_standing)
        self._capacity.admitted(seq)

    def leave(self, seq: Sequence, state: SequenceState) -> None:
        """Takes slot and blocks from ``seq``. Steps in flight keep its blocks until they land; the slot can be given
        on at once, since the worker does what it is told in order."""
        self._ordered.remove(seq)
        self._capacity.left(seq)
        self._manager.retire(seq.lease)
        self._free_slots.append(seq.slot)
        self._left.append(seq.slot)
        seq.slot, seq.lease, seq.computed = -1, None, 0
        seq.state = state

    def take_left(self) -> tuple[int, ...]:
        """Slots that were left since this was asked last."""
        left, self._left = tuple(self._left), []
        return left

    def lowest_idle(self, step: int, above: Sequence) -> Sequence | None:
        """The lowest in standing below ``above`` that has no work in ``step`` yet."""
        for seq in reversed(self._ordered):
            if seq is above:
                return None
            if seq.last_planned != step:
                return seq
        raise IntegrityError(f"{above} is not among the running sequences")

    def check(self) -> None:
        """Raises ``IntegrityError`` unless slots, order and states agree."""
        taken = [seq.slot for seq in self._ordered]
        if sorted(taken + self._free_slots) != list(range(self._n_slots)):
            raise IntegrityError(f"slots taken {taken} and free {self._free_slots} are not all slots once")
        if [seq.standing for seq in self._ordered] != sorted(seq.standing for seq in self._ordered):
            raise IntegrityError("the running sequences are out of order")
        for seq in self._ordered:
            if seq.state is not SequenceState.RUNNING or seq.lease is None or seq.lease.retired:
                raise IntegrityError(f"{seq} runs without a lease")
