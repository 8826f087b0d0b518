"""A step in the making, and a step in flight."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from headrace.cache.lease import BlockLease
from headrace.cache.tiers import MoveBatch
from headrace.core.plan import BlockCopy, BlockUpdate, SeqEnd, SeqWork, SlotAppend, SlotInit, StepPlan
from headrace.core.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Flying:
    """One work in flight: whose it is, and the lease it holds until it lands."""

    seq: Sequence
    work: SeqWork
    lease: BlockLease
    samples: bool


@dataclass(frozen=True, slots=True)
class Flight:
    """A step that was planned and has not been applied."""

    step: int
    works: list[Flying]
    sources: list[BlockLease]
    """Blocks that the step copies from."""
    moves: MoveBatch
    """Between tiers of the cache."""


@dataclass(slots=True)
class StepDraft:
    """Works are added until the rows are used up; then it is a plan and a flight."""

    step: int
    rows_left: int
    works: list[Flying] = field(default_factory=list)
    appends: list[SlotAppend] = field(default_factory=list)
    inits: list[SlotInit] = field(default_factory=list)
    updates: list[BlockUpdate] = field(default_factory=list)
    copies: list[BlockCopy] = field(default_factory=list)
    sources: list[BlockLease] = field(default_factory=list)
    short: Sequence | None = None
    """The highest in standing of those that found no memory: nobody is let in, and it goes first in the next step."""
    n_chunks: int = 0
    n_decodes: int = 0
    n_prefills: int = 0
    n_trees: int = 0
    samples: bool = False

    def add(self, seq: Sequence, n_tokens: int, drafts: tuple[int, ...], more_drafts: int = 0) -> None:
        """Rows of ``seq``: its next ``n_tokens`` tokens and the drafts. The step holds its lease."""
        start, known = seq.scheduled, seq.known_bound
        samples = start + n_tokens == known
        outputs = seq.outputs_of(start, n_tokens, len(drafts))
        work = SeqWork(seq.slot, seq.seq_id, start, n_tokens, outputs, drafts, more_drafts)
        seq.launch(work, samples=samples)
        seq.last_planned = self.step
        seq.lease.hold()
        self.works.append(Flying(seq, work, seq.lease, samples))
        self.rows_left -= work.n_rows
        self.n_trees += more_drafts > 0
        if known - start == 1:
            self.n_decodes += 1
        else:
            self.n_prefills += 1
            self.n_chunks += not samples
        self.samples = self.samples or samples

    def falls_short(self, seq: Sequence) -> None:
        """``seq`` found no memory."""
        if self.short is None or seq.standing < self.short.standing:
            self.short = seq

    def plan(self, moves: MoveBatch, ended: tuple[SeqEnd, ...], released: tuple[int, ...]) -> StepPlan:
        return StepPlan(
            self.step,
            tuple([flying.work for flying in self.works]),
            tuple(self.appends),
            tuple(self.inits),
            tuple(self.updates),
            tuple(self.copies),
            moves.moves,
            ended,
            released,
        )

    def flight(self, moves: MoveBatch) -> Flight:
        return Flight(self.step, self.works, self.sources, moves)

    def count(self, counters: Counter[str], overlapped: bool) -> None:
        """Adds this step to the witnesses."""
        counters["steps"] += 1
        counters["overlapped_steps"] += overlapped
        counters["chunks"] += self.n_chunks
        counters["mixed_steps"] += bool(self.n_decodes and self.n_prefills)
