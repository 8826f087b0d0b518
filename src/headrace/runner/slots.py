"""The worker's truth about every running sequence, one row ("slot") each.

A plan speaks of slots and upper bounds; what is really known and computed stands here. Rows are fixed for a sequence's
life and a step gathers from them, so nothing is moved or kept in batch order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headrace.core.errors import EngineError
from headrace.core.media import seen_from
from headrace.core.plan import BlockUpdate, SlotAppend, SlotInit

_NEVER = np.iinfo(np.int64).max


class SlotTable:
    """Histories, lengths, stop flags and block tables of ``n_slots`` slots.

    Behind the slots lie ``n_lanes`` lanes, which no plan names: see ``lanes.py``.

    Arrays, all indexed by slot or lane:
        history   [n_slots + n_lanes, max_seq_len + max_drafts] int32: prompt, output, then drafts under verification
        known     int64: tokens of the history that are decided
        computed  int64: tokens whose keys and values are in the cache
        n_prompt, max_length  int64
        second_from  int64: where the second of two texts begins
        adapter   int32: number of the adapter, -1 for none
        stopped   bool: no more rows, whatever a plan made earlier says
    ``block_tables[g]`` is [n_slots + n_lanes, max_blocks] int32 for cache group g; of a group of encoded media it is as
    wide as it has to be.
    """

    def __init__(
        self,
        n_slots: int,
        max_seq_len: int,
        max_drafts: int,
        n_groups: int,
        block_tokens: int,
        media_groups: Sequence[int] = (),
        n_lanes: int = 0,
    ) -> None:
        width = max_seq_len + max_drafts
        max_blocks = -(-width // block_tokens)
        self.n_slots, self.n_lanes = n_slots, n_lanes
        n_slots += n_lanes
        self.history = np.zeros((n_slots, width), np.int32)
        self.known = np.zeros(n_slots, np.int64)
        self.computed = np.zeros(n_slots, np.int64)
        self.n_prompt = np.zeros(n_slots, np.int64)
        self.max_length = np.zeros(n_slots, np.int64)
        self.second_from = np.full(n_slots, _NEVER, np.int64)
        self.adapter = np.full(n_slots, -1, np.int32)
        self.stopped = np.ones(n_slots, bool)
        self.seq_ids = np.full(n_slots, -1, np.int64)
        self.inits: list[SlotInit | None] = [None] * n_slots
        self.media_groups = frozenset(media_groups)
        """Groups that hold encoded media instead of tokens."""
        self.block_tables = [
            np.zeros((n_slots, 1 if group in self.media_groups else max_blocks), np.int32) for group in range(n_groups)
        ]
        self.seen_media: list[np.ndarray | None] = [None] * n_slots
        """By slot: [n, 3] int64, ``core.media.seen_from``; None: no media."""

    @property
    def nbytes(self) -> int:
        return self.history.nbytes + sum(table.nbytes for table in self.block_tables)

    def bind(self, init: SlotInit) -> None:
        """Gives the slot to a sequence; whatever was there is forgotten."""
        slot, n_tokens = init.slot, len(init.tokens)
        self.history[slot, :n_tokens] = init.tokens
        self.known[slot] = n_tokens
        self.computed[slot] = init.computed
        self.n_prompt[slot] = init.n_prompt
        self.max_length[slot] = init.max_length
        self.second_from[slot] = _NEVER if init.second_from is None else init.second_from
        self.adapter[slot] = -1 if init.adapter is None else init.adapter.number
        self.stopped[slot] = False
        self.seq_ids[slot] = init.seq_id
        self.inits[slot] = init
        self.seen_media[slot] = np.array(seen_from(init.media), np.int64) if init.media else None

    def choose(self, appends: Sequence[SlotAppend]) -> None:
        """The next tokens of beams."""
        for append in appends:
            self.append(append.slot, (append.token,))

    def init_of(self, slot: int) -> SlotInit:
        """The record that the slot's sequence came with."""
        init = self.inits[slot]
        if init is None:
            raise EngineError(f"slot {slot} is used before a sequence was bound to it")
        return init

    def known_history(self, slot: int) -> np.ndarray:
        """The decided tokens of a slot: int32, a view."""
        return self.history[slot, : self.known[slot]]

    def update_blocks(self, updates: Sequence[BlockUpdate]) -> None:
        for update in updates:
            last = update.first + len(update.blocks)
            missing = last - self.block_tables[update.group].shape[1]
            if missing > 0 and update.group in self.media_groups:
                self.block_tables[update.group] = np.pad(self.block_tables[update.group], ((0, 0), (0, missing)))
            self.block_tables[update.group][update.slot, update.first : last] = update.blocks

    def media_ranges(self, slots: np.ndarray, query_starts: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Which keys of encoded media the rows of a batch see: int64 [T, 2], [first, end) of each row's slot."""
        ranges = np.zeros((len(positions), 2), np.int64)
        for index, slot in enumerate(slots.tolist()):
            seen = self.seen_media[slot]
            if seen is not None:
                rows = slice(query_starts[index], query_starts[index + 1])
                entry = np.searchsorted(seen[:, 0], positions[rows], side="right")
                ranges[rows] = np.concatenate((np.zeros((1, 2), np.int64), seen[:, 1:]))[entry]
        return ranges

    def append(self, slot: int, tokens: Sequence[int]) -> None:
        """Decided tokens, after the known ones."""
        first = int(self.known[slot])
        self.history[slot, first : first + len(tokens)] = tokens
        self.known[slot] = first + len(tokens)

    def lay_drafts(self, slot: int, drafts: Sequence[int], after: int = 0) -> None:
        """Undecided tokens, behind the known ones and ``after`` drafts; the next ``append`` writes over them."""
        first = int(self.known[slot]) + after
        self.history[slot, first : first + len(drafts)] = drafts

    def state(self) -> dict[str, list[int]]:
        """Lengths by slot, for error messages and the integrity check."""
        return {"known": self.known.tolist(), "computed": self.computed.tolist(), "seq_ids": self.seq_ids.tolist()}
