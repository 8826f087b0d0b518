"""From a plan to the rows of a batch: bounds are resolved to the slots' truth here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from headrace.core.errors import EngineError
from headrace.core.plan import BLOCK_TOKENS, Rows, SeqWork
from headrace.ops.batch import Batch, GroupBatch

from .drafter import Drafter
from .slots import SlotTable


@dataclass(frozen=True, slots=True)
class ResolvedWork:
    """A unit of work with its true place, and where its rows lie in the batch."""

    work: SeqWork
    index: int
    """Position in the plan's works."""
    start: int
    first_row: int
    drafts: tuple[int, ...]
    """The draft tokens, whoever made them."""

    @property
    def n_rows(self) -> int:
        return self.work.n_tokens + len(self.drafts)

    @property
    def end(self) -> int:
        """Position after the rows of known tokens."""
        return self.start + self.work.n_tokens

    @property
    def last_known_row(self) -> int:
        return self.first_row + self.work.n_tokens - 1


def resolve(works: Sequence[SeqWork], slots: SlotTable, drafter: Drafter, counters: Counter[str]) -> list[ResolvedWork]:
    """The works that still have something to do, at their true positions, with their drafts.

    A slot that stopped in an earlier step drops out: the plan was made before that was known.
    Raises ``EngineError`` when a plan and a slot contradict each other.
    """
    live, starts = [], []
    for index, work in enumerate(works):
        if slots.seq_ids[work.slot] != work.seq_id:
            raise EngineError(
                f"plan names sequence {work.seq_id} in slot {work.slot}, which holds {slots.seq_ids[work.slot]}"
            )
        if slots.stopped[work.slot]:
            continue
        start = int(slots.computed[work.slot])
        end = start + work.n_tokens
        known = int(slots.known[work.slot])
        samples = work.outputs is Rows.LAST or work.outputs is Rows.DRAFTS
        if start > work.start or end > known or (samples and end != known):
            raise EngineError(f"{work} does not fit its slot: computed {start}, known {known}")
        live.append((index, work))
        starts.append(start)
    drafts = drafter.drafts([work for _, work in live], counters)
    resolved, row = [], 0
    for (index, work), start, made in zip(live, starts, drafts, strict=True):
        resolved.append(ResolvedWork(work, index, start, row, made))
        row += resolved[-1].n_rows
    return resolved


def gather(resolved: Sequence[ResolvedWork], slots: SlotTable, device: torch.device) -> Batch:
    """The batch of the resolved works. Drafts are laid behind the known history first, so one gather takes all ids."""
    for item in resolved:
        if item.drafts:
            slots.lay_drafts(item.work.slot, item.drafts)
    slot_of = np.array([item.work.slot for item in resolved], np.int64)
    starts = np.array([item.start for item in resolved], np.int64)
    counts = np.array([item.n_rows for item in resolved], np.int64)
    return gather_rows(slot_of, starts, counts, np.array([len(item.drafts) for item in resolved]), slots, device)


def gather_rows(
    slot_of: np.ndarray,
    starts: np.ndarray,
    counts: np.ndarray,
    n_drafts: np.ndarray,
    slots: SlotTable,
    device: torch.device,
) -> Batch:
    """The batch of ``counts[s]`` (>= 1) rows of slot ``slot_of[s]`` from position ``starts[s]`` on, of which the last
    ``n_drafts[s]`` are drafts; int64 [S] each."""
    query_starts = np.zeros(len(slot_of) + 1, np.int64)
    np.cumsum(counts, out=query_starts[1:])

    row_slot = np.repeat(slot_of, counts)
    positions = np.arange(query_starts[-1]) + np.repeat(starts - query_starts[:-1], counts)
    input_ids = slots.history[row_slot, positions].astype(np.int64)
    seq_lens = starts + counts
    columns = -(-int(seq_lens.max()) // BLOCK_TOKENS)
    groups = []
    seen = slots.media_ranges(slot_of, query_starts, positions) if slots.media_groups else np.zeros((0, 2), np.int64)
    for group, table in enumerate(slots.block_tables):
        if group in slots.media_groups:
            groups.append(_media_group(table[slot_of], seen, device))
            continue
        blocks = table[row_slot, positions // BLOCK_TOKENS].astype(np.int64)
        groups.append(
            GroupBatch(
                block_table=torch.from_numpy(table[slot_of, :columns]).to(device),
                write_index=torch.from_numpy(blocks * BLOCK_TOKENS + positions % BLOCK_TOKENS).to(device),
            )
        )
    return Batch(
        input_ids=torch.from_numpy(input_ids).to(device),
        positions=torch.from_numpy(positions).to(device),
        query_starts=torch.from_numpy(query_starts),
        seq_lens=torch.from_numpy(seq_lens),
        second_from=torch.from_numpy(slots.second_from[slot_of]),
        groups=tuple(groups),
        sees_media=bool(seen.any()),
        draft_counts=torch.from_numpy(n_drafts),
        adapters=torch.from_numpy(slots.adapter[row_slot]),
    )


def _media_group(table: np.ndarray, seen: np.ndarray, device: torch.device) -> GroupBatch:
    """Of a group of encoded media: a step writes nothing there."""
    columns = max(1, -(-int(seen.max()) // BLOCK_TOKENS))
    return GroupBatch(
        block_table=torch.from_numpy(table[:, :columns].copy()).to(device),
        write_index=torch.zeros(0, dtype=torch.int64, device=device),
        key_ranges=torch.from_numpy(seen),
    )
