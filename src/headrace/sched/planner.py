"""Makes one step: who gets how many rows, and memory for them.

Running sequences with one row to catch up (decodes) go first, with their drafts; then those with more (a prompt, or
what is computed again), by the chunking policy; then newcomers. If there are fewer rows than decodes, all take turns.

Memory: a sequence that finds none preempts those of lower standing, lowest first, unless some is about to come back by
itself. The highest that found none is served first in the next step, and until then nobody is let in.
"""

from __future__ import annotations

from collections import Counter
from operator import attrgetter

from headrace.cache.hit import Hit
from headrace.cache.manager import CacheManager
from headrace.core.errors import IntegrityError, RequestError
from headrace.core.plan import BLOCK_TOKENS, SlotAppend, SlotInit
from headrace.core.sequence import Sequence, SequenceState
from headrace.spec.pace import Pace
from headrace.spec.proposer import Proposer

from .beams import Turns
from .capacity import CapacityPolicy
from .chunking import ChunkingPolicy, cut_chunk
from .options import SchedulerOptions
from .residents import Residents
from .step import StepDraft
from .waiting import WaitingQueue

_last_planned = attrgetter("last_planned")


class Planner:
    """Fills steps from the running and the waiting. Ends nobody."""

    def __init__(
        self,
        manager: CacheManager,
        residents: Residents,
        waiting: WaitingQueue,
        capacity: CapacityPolicy,
        chunking: ChunkingPolicy,
        proposer: Proposer,
        pace: Pace,
        options: SchedulerOptions,
        counters: Counter[str],
        turns: Turns,
    ) -> None:
        self._manager = manager
        self._residents = residents
        self._waiting = waiting
        self._capacity = capacity
        self._chunking = chunking
        self._proposer = proposer
        self._pace = pace
        self.failed: list[tuple[Sequence, RequestError]] = []
        """Sequences for which drafting failed: the scheduler ends them."""
        self._max_rows = options.max_num_tokens
        self._max_parked = options.max_batch_size
        self._more_drafts, self._most_trees = options.more_drafts, options.most_trees
        self._counters = counters
        self._turns = turns
        self._short: Sequence | None = None
        self._refused: tuple[Sequence, int] | None = None
        """The first in line when it found no memory, and how often memory had been given back by then."""

    def fill(self, number: int) -> StepDraft:
        """Step ``number``; it may come out empty."""
        step = StepDraft(number, self._max_rows)
        if self._residents:
            self._turn_beams(step)
            self._serve_short(step)
            self._continue(step)
        self._admit(step)
        self._short = step.short
        if step.works:
            self._turns.clear()
        return step

    def clear_the_way(self, number: int) -> StepDraft:
        """The step that ends a standstill: nothing is in flight, somebody is there, and no step could be made.

        That happens when one sequence alone cannot grow although it was promised to fit: blocks that others left in the
        index lie scattered over the sectors. Everything is given up, and the first in line starts in an empty cache.
        """
        self._counters["standstills"] += 1
        for seq in reversed(list(self._residents)):
            self.preempt(seq)
        first = self._waiting.peek()
        if first is not None:
            # It is the one to go on: it does not step aside for the disk now.
            first.has_fetched = True
        self._manager.evict_all()
        self._refused = self._short = None
        self._turns.clear()
        step = StepDraft(number, self._max_rows)
        self._admit(step)
        if not (step.works or self._manager.tiers.n_moves):
            raise IntegrityError(f"{self._waiting.peek()} does not fit into an empty cache although it was admitted")
        return step

    def preempt(self, seq: Sequence) -> None:
        """Back to the queue; what was computed may be found in the prefix index later, or is computed again."""
        self._residents.leave(seq, SequenceState.WAITING)
        seq.n_preempted += 1
        seq.wait_length = -1
        seq.has_fetched = False
        self._waiting.push(seq)
        self._counters["preemptions"] += 1

    # Those who run.

    def _turn_beams(self, step: StepDraft) -> None:
        """What became of beams that still run. It goes into this step even if it has no rows for them: the others of
        their request may write in it what is copied here. The worker does it before all else in the step, so one that
        is preempted in the rest of it takes no harm."""
        for seq in self._turns.appended:
            if seq.state is SequenceState.RUNNING:
                step.appends.append(SlotAppend(seq.slot, seq.tokens[-1]))
        for seq, placement in self._turns.forked:
            if seq.state is SequenceState.RUNNING:
                step.updates += placement.updates
                step.copies += placement.copies
                step.inits.append(_slot_init(seq, seq.computed))

    def _serve_short(self, step: StepDraft) -> None:
        """Whoever found no memory last time goes first."""
        seq = self._short
        if seq is not None and seq.state is SequenceState.RUNNING and seq.can_continue:
            share = 1 if _backlog(seq) == 1 else max(1, step.rows_left - len(self._residents))
            self._place_chunk(step, seq, share)

    def _continue(self, step: StepDraft) -> None:
        decodes: list[Sequence] = []
        prefills: list[Sequence] = []
        for seq in self._residents:
            if seq.last_planned != step.step and seq.can_continue:
                (decodes if _backlog(seq) == 1 else prefills).append(seq)
        if len(decodes) > step.rows_left or (prefills and len(decodes) == step.rows_left):
            self._take_turns(step, decodes + prefills)
            return
        self._decode(step, decodes, others_wait=bool(prefills) or self._n_joining() > 0)
        self._catch_up(step, prefills)

    def _take_turns(self, step: StepDraft, ready: list[Sequence]) -> None:
        """Too few rows for everybody: one row each, to those first that have gone without for longest."""
        for seq in sorted(ready, key=_last_planned):
            if step.rows_left == 0:
                return
            if seq.state is SequenceState.RUNNING:
                self._place(step, seq, 1, ())

    def _decode(self, step: StepDraft, decodes: list[Sequence], *, others_wait: bool) -> None:
        """One row each; drafts get the rows left over, half of them if others have rows to catch up."""
        left = step.rows_left - len(decodes)
        drafts_left = left // 2 if others_wait else left
        most = self._pace.most(len(self._residents))
        for seq in decodes:
            if seq.state is not SequenceState.RUNNING:
                continue
            limit = min(most, drafts_left, seq.max_length - 1 - seq.known_bound)
            drafts = self._drafts(seq, limit) if limit > 0 and not seq.n_candidates else ()
            drafts_left -= len(drafts)
            more = min(self._more_drafts, drafts_left) if drafts and step.n_trees < self._most_trees else 0
            drafts_left -= more
            self._place(step, seq, 1, drafts, more)

    def _drafts(self, seq: Sequence, limit: int) -> tuple[int, ...]:
        try:
            drafts = self._proposer.propose(seq.seq_id, limit)
            # What stands for media is never drawn.
            return next((drafts[:at] for at, token in enumerate(drafts) if token in seq.placeholders), drafts)
        except RequestError as error:
            self.failed.append((seq, error))
            return ()

    def _catch_up(self, step: StepDraft, prefills: list[Sequence]) -> None:
        if not prefills:
            return
        backlogs = [_backlog(seq) for seq in prefills]
        shares = self._chunking.shares(backlogs, step.rows_left, self._n_joining())
        for seq, share in zip(prefills, shares, strict=True):
            if share and seq.state is SequenceState.RUNNING:
                self._place_chunk(step, seq, share)

    def _n_joining(self) -> int:
        """Sequences that could be admitted in this step, for all that is known before trying."""
        if self._refused is not None and self._refused[1] == self._manager.n_given_back:
            return 0
        return min(len(self._waiting) - self._waiting.n_parked - self._waiting.n_aside, self._residents.n_free_slots)

    def _place_chunk(self, step: StepDraft, seq: Sequence, share: int) -> None:
        self._place(step, seq, cut_chunk(seq.scheduled, share, _backlog(seq)), ())

    def _place(
        self, step: StepDraft, seq: Sequence, n_tokens: int, drafts: tuple[int, ...], more_drafts: int = 0
    ) -> None:
        """Gives a running sequence its rows, or as many as there is memory for."""
        rows = n_tokens + len(drafts)
        end = seq.scheduled + rows
        if end > seq.lease.n_blocks * BLOCK_TOKENS:
            rows = self._find_memory(step, seq, rows)
            if rows == 0:
                step.falls_short(seq)
                return
            n_tokens = min(n_tokens, rows)
            drafts = drafts[: rows - n_tokens]
            end = seq.scheduled + rows
            if end > seq.lease.n_blocks * BLOCK_TOKENS:
                step.updates += self._manager.grow(seq.slot, seq.lease, end)
        step.add(seq, n_tokens, drafts, more_drafts if drafts else 0)

    def _find_memory(self, step: StepDraft, seq: Sequence, rows: int) -> int:
        """Rows of ``seq`` for which there is memory, after preempting others if there is none for a single one."""
        start = seq.scheduled
        while True:
            fit = self._manager.rows_that_fit(seq.lease, start, rows)
            # What is in flight may be about to give back blocks: those of an ended sequence, or of this one's window.
            if fit or seq.n_flying or self._manager.n_limbo:
                return fit
            victim = self._residents.lowest_idle(step.step, above=seq)
            if victim is None:
                return 0
            self.preempt(victim)

    # Those who wait.

    def _admit(self, step: StepDraft) -> None:
        """Lets in whoever is first in line until rows, slots or memory run out. Nobody passes the first in line, unless
        it waits for a block that is being computed. The media of one sequence are encoded in a step: rows do not bound
        what they cost, and all who decode wait for it."""
        self._waiting.wake(self._manager.take_resolved())
        while step.rows_left and self._residents.n_free_slots and step.short is None:
            seq = self._waiting.peek()
            if seq is None or seq.n_flying or self._refused == (seq, self._manager.n_given_back):
                return
            identity, limit = seq.request.cache_identity, seq.reusable_limit
            hit = self._manager.lookup(identity, seq.keys, limit, seq.media, with_disk=not seq.has_fetched)
            if self._manager.must_fetch(hit):
                if self._waiting.n_parked >= self._max_parked:
                    return
                self._fetch(seq, hit)
            elif hit.awaited is not None and hit.length > seq.wait_length:
                if self._waiting.n_parked >= self._max_parked:
                    return
                seq.wait_length = hit.length
                self._waiting.park(hit.awaited)
                self._counters["prefix_waits"] += 1
            elif not self._admit_first(step, seq, hit) or step.inits[-1].encodes:
                return

    def _fetch(self, seq: Sequence, hit: Hit) -> None:
        """The first in line steps aside until what it finds on disk has come, once: it may be pushed out again."""
        seq.has_fetched = True
        arrival = self._manager.fetch(hit)
        if arrival is not None:
            self._waiting.park(arrival)
            self._counters["disk_waits"] += 1

    def _admit_first(self, step: StepDraft, seq: Sequence, hit: Hit) -> bool:
        """Admits the first in line, if rows and memory allow."""
        fresh = seq.cached_tokens is None
        backlog = len(seq.tokens) - hit.length
        share = self._chunking.first_share(backlog, step.rows_left, max(1, self._n_joining()), fresh)
        if share == 0:
            return False
        wanted = hit.length + cut_chunk(hit.length, share, backlog)
        end = self._manager.furthest_place(hit, wanted) if self._capacity.may_admit(seq, hit) else hit.length
        if end == hit.length or (end < wanted and self._chunking.whole and fresh):
            self._refused = (seq, self._manager.n_given_back)
            return False
        self._waiting.pop()
        self._enter(step, seq, hit, end)
        step.add(seq, end - hit.length, ())
        return True

    def _enter(self, step: StepDraft, seq: Sequence, hit: Hit, end: int) -> None:
        placement = self._residents.enter(seq, hit, end)
        step.updates += placement.updates
        step.copies += placement.copies
        if placement.sources is not None:
            step.sources.append(placement.sources)
        step.inits.append(_slot_init(seq, hit.length, encodes=placement.encodes))
        if seq.cached_tokens is None:
            seq.cached_tokens, seq.miss = hit.length, hit.miss
            if not seq.n_candidates:
                self._proposer.admit(seq.seq_id, seq.tokens)
                seq.in_proposer = True
        for tier, tokens in placement.cached_tokens.items():
            self._counters[f"cached_tokens.{tier}"] += tokens


def _slot_init(seq: Sequence, computed: int, *, encodes: bool = False) -> SlotInit:
    request = seq.request
    return SlotInit(
        slot=seq.slot,
        seq_id=seq.seq_id,
        tokens=tuple(seq.tokens),
        n_prompt=seq.n_prompt,
        computed=computed,
        sampling=request.sampling,
        seed=request.seed,
        output_index=seq.index,
        stop_ids=request.stop_ids,
        eos_ids=request.eos_ids,
        max_length=seq.max_length,
        pooling=request.pooling,
        request_id=request.request_id,
        identity=request.cache_identity,
        second_from=request.second_from,
        grammar=request.grammar,
        media=request.media,
        encodes=encodes,
        n_candidates=seq.n_candidates,
        adapter=request.adapter,
    )


def _backlog(seq: Sequence) -> int:
    """Rows the sequence has to catch up before it can go on, at most: 1 when it decodes."""
    return seq.known_bound - seq.scheduled
