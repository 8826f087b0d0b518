"""A cache of the draft head's own ("two-model"): its blocks, block tables and prefix index, apart from the target's.

The head reads what the target makes of tokens, so it can only write rows that the target computes. Where the target
goes on behind a prefix that it has found in its cache, the head looks the same prefix up in its own. What it does not
find there it never gets to know, and goes on as though those tokens had not been:

    sequence        0 .. 63 found by the target | 64 ..
    of the head     0 .. 31 found here          | 32 ..        skips 32 tokens

Positions of a head only count by how far they are apart. The same happens to rows for which there was no block. So it
may draft worse, and never differently for anybody else: blocks that stand behind a gap do not enter the prefix index.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from headrace.cache.groups import CacheGroup
from headrace.cache.lease import BlockLease
from headrace.cache.manager import CacheManager
from headrace.core.media import cache_keys
from headrace.core.plan import BLOCK_TOKENS, SlotInit
from headrace.ops.batch import Batch

from .gather import gather_rows
from .slots import SlotTable
from .tiers import BlockMover


class OwnKeys:
    """See ``head_keys.HeadKeys``.

    Args:
        cache: over ``groups``, without tiers.
        mover: of its arena.
        slots: of the target: what the sequences are.
        tables: as many slots; of these, only the block tables over ``groups`` are used.
    """

    def __init__(
        self,
        cache: CacheManager,
        groups: Sequence[CacheGroup],
        mover: BlockMover,
        slots: SlotTable,
        tables: SlotTable,
        device: torch.device,
    ) -> None:
        self.cache, self.groups = cache, groups
        self._mover, self._slots, self._tables, self._device = mover, slots, tables, device
        self._leases: list[BlockLease | None] = [None] * slots.n_slots
        self._written = np.zeros(slots.n_slots, np.int64)
        """Position in the sequence before which all rows that there are to write have been written, by slot."""
        self._skipped = np.zeros(slots.n_slots, np.int64)
        """Tokens before that position that have no place here, by slot."""
        self._counters: Counter[str] = Counter()
        self._n_taken = 0

    def bind(self, init: SlotInit) -> None:
        slot, tokens = init.slot, cache_keys(init.tokens, init.media)
        self.release(slot)
        hit = self.cache.lookup(init.identity, tokens, init.computed)
        if not self.cache.can_place(hit, hit.length):
            hit = self.cache.lookup(init.identity, tokens, 0)
        placed = self.cache.place(slot, hit, tokens, hit.length)
        self._tables.update_blocks(placed.updates)
        self._mover.make((), placed.copies)
        if placed.sources is not None:
            self.cache.drop(placed.sources)
        # Nobody here waits for what others compute.
        self.cache.take_resolved()
        self._leases[slot] = placed.lease
        self._written[slot] = init.computed
        self._skipped[slot] = 0
        self._skip(slot, init.computed - hit.length)
        self._counters["draft_cached_tokens"] += hit.length

    def release(self, slot: int) -> None:
        lease, self._leases[slot] = self._leases[slot], None
        if lease is not None:
            self.cache.retire(lease)

    def make_room(self, slots: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        for slot, gap in zip(slots.tolist(), (starts - self._written[slots]).tolist(), strict=True):
            if gap > 0:
                self._skip(slot, gap)
                self._written[slot] += gap
        places = starts - self._skipped[slots], ends - self._skipped[slots]
        found = [self._grow(*one) for one in zip(slots.tolist(), *(place.tolist() for place in places), strict=True)]
        return np.array(found, bool)

    def batch(self, slots: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> tuple[Batch, np.ndarray]:
        skipped = self._skipped[slots]
        batch = gather_rows(slots, starts - skipped, counts, np.zeros_like(counts), self._tables, self._device)
        return batch, batch.positions.numpy() + np.repeat(skipped, counts)

    def keep(self, slots: np.ndarray, ends: np.ndarray) -> None:
        self._written[slots] = ends
        for slot, end in zip(slots.tolist(), ends.tolist(), strict=True):
            lease = self._leases[slot]
            assert lease is not None, "rows of a slot that has no sequence"
            if not self._skipped[slot] and end // BLOCK_TOKENS > lease.n_indexed:
                init = self._slots.init_of(slot)
                tokens = cache_keys(self._slots.known_history(slot).tolist(), init.media)
                self.cache.commit(lease, tokens, end)

    def count(self, counters: Counter[str]) -> None:
        self._counters["draft_cache_blocks"] += self.cache.pool.n_taken - self._n_taken
        self._n_taken = self.cache.pool.n_taken
        counters.update(self._counters)
        self._counters.clear()

    def _skip(self, slot: int, n_tokens: int) -> None:
        self._skipped[slot] += n_tokens
        self._counters["draft_skipped_tokens"] += n_tokens

    def _grow(self, slot: int, start: int, end: int) -> bool:
        """Blocks up to place ``end``; False if there are not enough."""
        lease = self._leases[slot]
        assert lease is not None, "rows of a slot that has no sequence"
        if end <= lease.n_blocks * BLOCK_TOKENS:
            return True
        if self.cache.rows_that_fit(lease, start, end - start) < end - start:
            return False
        self._tables.update_blocks(self.cache.grow(slot, lease, end))
        return True
