"""From a plan to the rows of a batch: bounds are resolved to the slots' truth here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from headrace.core.errors import EngineError
from headrace.core.plan import BLOCK_TOKENS, Rows, SeqWork
from headrace.ops.batch import Batch, GroupBatch

from .drafter import Drafter
from .lanes import Branch, Lanes
from .paths import DraftTree, Path, path_rows
from .slots import SlotTable


@dataclass(frozen=True, slots=True)
class ResolvedWork:
    """A unit of work with its true place, and where its rows lie in the batch."""

    work: SeqWork
    index: int
    """Position in the plan's works."""
    start: int
    first_row: int
    drafts: Path
    """The draft tokens, whoever made them; of a tree its first path, then the path that was right."""
    branches: tuple[Branch, ...] = ()
    """The other paths of a tree. Then there is one known token."""
    chosen_rows: np.ndarray | None = None
    """int64: rows of the known tokens and ``drafts`` where another path than the first was right."""

    @property
    def n_rows(self) -> int:
        return self.work.n_tokens + len(self.drafts) + sum(branch.n_rows for branch in self.branches)

    @property
    def n_drafts(self) -> int:
        return len(self.drafts) + sum(branch.n_new for branch in self.branches)

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.drafts, *(branch.drafts for branch in self.branches))

    @property
    def rows(self) -> np.ndarray:
        """int64: those of the known tokens and of ``drafts``."""
        if self.chosen_rows is not None:
            return self.chosen_rows
        return np.arange(self.first_row, self.first_row + self.work.n_tokens + len(self.drafts))

    @property
    def end(self) -> int:
        """Position after the rows of known tokens."""
        return self.start + self.work.n_tokens

    @property
    def last_known_row(self) -> int:
        return self.first_row + self.work.n_tokens - 1

    def sampled(self) -> Iterator[tuple[int, int, int, Path]]:
        """Of each path: slot, how many of its rows are sampled with the path before it, the first row of the batch that
        is sampled with this one, and its drafts."""
        row = self.last_known_row
        yield self.work.slot, 0, row, self.drafts
        row += 1 + len(self.drafts)
        for branch in self.branches:
            yield self.work.slot, 1 + branch.shared, row + 1 + branch.shared - branch.skipped, branch.drafts
            row += branch.n_rows

    def on(self, path: int) -> ResolvedWork:
        """The same when it is known which path was right."""
        if not self.branches:
            return self
        own = (0, *(branch.skipped for branch in self.branches))
        rows = path_rows(self.first_row, self.paths, own)[path]
        return replace(self, drafts=self.paths[path], branches=(), chosen_rows=rows)


def resolve(
    works: Sequence[SeqWork], slots: SlotTable, drafter: Drafter, lanes: Lanes, counters: Counter[str]
) -> list[ResolvedWork]:
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
    resolved, row, n_lanes = [], 0, 0
    for (index, work), start, made in zip(live, starts, drafts, strict=True):
        if isinstance(made, DraftTree):
            branches = lanes.branches(made, n_lanes)
            resolved.append(ResolvedWork(work, index, start, row, made.paths[0], branches))
            n_lanes += len(branches)
        else:
            resolved.append(ResolvedWork(work, index, start, row, made))
        row += resolved[-1].n_rows
    return resolved


def gather(resolved: Sequence[ResolvedWork], slots: SlotTable, lanes: Lanes, device: torch.device) -> Batch:
    """The batch of the resolved works. Drafts are laid behind the known history first, so one gather takes all ids.

    A branch is a sequence of the batch by itself, behind the one that it belongs to. As nobody knows yet which path is
    right, all rows of a tree count as drafts.
    """
    slot_of, starts, counts, n_drafts = [], [], [], []
    for item in resolved:
        if item.drafts:
            slots.lay_drafts(item.work.slot, item.drafts)
        slot_of.append(item.work.slot)
        starts.append(item.start)
        counts.append(item.work.n_tokens + len(item.drafts))
        n_drafts.append(counts[-1] if item.branches else len(item.drafts))
        if item.branches:
            lanes.lay(item.work.slot, item.branches, item.start)
        for branch in item.branches:
            slot_of.append(branch.lane)
            starts.append(item.start + branch.skipped)
            counts.append(branch.n_rows)
            n_drafts.append(branch.n_rows)
    numbers = (np.array(column, np.int64) for column in (slot_of, starts, counts, n_drafts))
    return gather_rows(*numbers, slots, device)


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
