"""The scheduler: takes in requests, plans steps, applies results, and ends sequences. It knows no phases.

    ingest(commands) -> updates      new requests, cancels, finishes; deadlines that have passed
    plan()           -> StepPlan     lets ``computed`` catch up with what is known, plus drafts
    apply(result)    -> updates      the oldest step in flight has come back

Any number of steps may be in flight. Not here: how a step is filled (``planner``), what memory there is (``cache``).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

from headrace.cache.lazy_heap import LazyHeap
from headrace.cache.manager import CacheManager
from headrace.core.clock import Clock
from headrace.core.errors import IntegrityError, QueueFullError, RequestError
from headrace.core.outputs import SequenceUpdate
from headrace.core.plan import FinishReason, SeqEnd, SeqResult, StepPlan, StepResult, TokenLogprobs
from headrace.core.pooling import Pooled
from headrace.core.request import Request
from headrace.core.sequence import Sequence, SequenceState
from headrace.spec.pace import FULL_PACE, Pace
from headrace.spec.proposer import Proposer

from .admission import Admission
from .beam_search import BeamSearch
from .beams import BeamGroup, Beams, Turns
from .capacity import capacity_policy
from .chunking import chunking_policy
from .commands import Cancel, Command, Control, Finish, Refuse, Submit
from .options import SchedulerOptions
from .planner import Planner
from .residents import Residents
from .step import Flight, Flying
from .waiting import WaitingQueue

WITNESSES = (
    "steps",
    "overlapped_steps",
    "chunks",
    "mixed_steps",
    "preemptions",
    "standstills",
    "cached_tokens.device",
    "cached_tokens.host",
    "cached_tokens.disk",
    "prefix_waits",
    "disk_waits",
    "drafts_proposed",
    "drafts_accepted",
    "cancelled",
    "timeouts",
    "finished",
    "failed",
)
"""Counters of the scheduler; those of the cache come on top (see ``counters``)."""


class Scheduler:
    """Owns every sequence from its arrival to its end. Used by one thread."""

    def __init__(
        self,
        manager: CacheManager,
        options: SchedulerOptions,
        proposer: Proposer,
        clock: Clock,
        pace: Pace = FULL_PACE,
    ) -> None:
        self.manager = manager
        self.admission = Admission(manager, options)
        """May be asked from any thread, before a request is submitted."""
        self._options = options
        self._proposer = proposer
        self._pace = pace
        self._clock = clock
        self._witnesses: Counter[str] = Counter(dict.fromkeys(WITNESSES, 0))
        self._seq_ids = itertools.count()
        rows_in_flight = options.max_num_tokens * options.depth
        self._capacity = capacity_policy(options.capacity_policy, manager, rows_in_flight)
        self._waiting = WaitingQueue()
        self._residents = Residents(options.max_batch_size, manager, self._capacity)
        turns = Turns()
        self._beams = Beams(self._residents, self._waiting, turns, self._seq_ids)
        self._groups: dict[int, BeamGroup] = {}
        """Of requests with beams, by request id."""
        self._planner = Planner(
            manager,
            self._residents,
            self._waiting,
            self._capacity,
            chunking_policy(options.chunking_policy, options.chunked_prefill),
            proposer,
            pace,
            options,
            self._witnesses,
            turns,
        )
        self._flights: deque[Flight] = deque()
        self._requests: dict[int, dict[int, Sequence]] = {}
        """Live sequences by request id and index."""
        self._deadlines: LazyHeap[dict[int, Sequence]] = LazyHeap(lambda _, live: bool(live))
        self._next_step = 0
        self._ended: list[SeqEnd] = []
        """Not told to the worker yet."""

    # Taking in.

    def ingest(self, commands: Iterable[Command]) -> list[SequenceUpdate]:
        """Obeys ``commands`` in order, then ends what failed while it was planned, and what is past its deadline."""
        updates: list[SequenceUpdate] = []
        for command in commands:
            match command:
                case Submit(request):
                    updates += self._submit(request)
                case Refuse(request, reason, error):
                    updates += self._refuse(request, reason, error)
                case Cancel(request_id):
                    updates += self._end_request(request_id, FinishReason.CANCELLED)
                case Finish(request_id, index, reason, stop_reason):
                    seq = self._requests.get(request_id, {}).get(index)
                    if seq is not None and request_id not in self._groups:  # beams come when they have ended
                        updates.append(self._end(seq, reason, stop_reason=stop_reason))
                case Control():
                    command.run(self)
        for seq, error in self._planner.failed:
            if seq.state is not SequenceState.FINISHED:
                updates.append(self._end(seq, FinishReason.ERROR, error=error))
        self._planner.failed.clear()
        now = self._clock.now()
        while (top := self._deadlines.peek()) is not None and top[0] <= now:
            request_id = next(iter(top[1].values())).request.request_id
            updates += self._end_request(request_id, FinishReason.TIMEOUT)
        return updates

    def _submit(self, request: Request) -> list[SequenceUpdate]:
        """Puts the sequences of a request in line, or says why not."""
        try:
            max_length = self._accept(request)
        except RequestError as error:
            return self._refuse(request, FinishReason.ERROR, error)
        live = self._requests[request.request_id] = {}
        search = BeamSearch(request, max_length) if request.sampling.use_beam_search else None
        for index in range(1 if search else request.n):
            seq = Sequence(
                next(self._seq_ids),
                request,
                index,
                max_length,
                drafts_wait=search is not None or self._proposer.needs_tokens,
                n_candidates=search.n_candidates if search else 0,
            )
            live[index] = seq
            self._waiting.push(seq)
        if search:
            self._groups[request.request_id] = BeamGroup(request, search, list(live.values()), live)
        if request.deadline is not None:
            self._deadlines.push(request.deadline, live)
        return []

    def _refuse(self, request: Request, reason: FinishReason, error: Exception | None) -> list[SequenceUpdate]:
        self._witnesses[_WITNESS_OF_END[reason]] += request.n
        now = self._clock.now()
        return [
            SequenceUpdate(request.request_id, index, finish_reason=reason, error=error, time=now)
            for index in range(request.n)
        ]

    def _accept(self, request: Request) -> int:
        """The length limit of the request's sequences. Raises ``RequestError``."""
        if request.request_id in self._requests:
            raise RequestError(f"request_id={request.request_id} is in use; give another", param="request_id")
        limit = self._options.max_queue_size
        if limit is not None and len(self._waiting) - self._residents.n_free_slots >= limit:
            raise QueueFullError(f"{limit} sequences wait already (max_queue_size); try again later")
        return self.admission.max_length(request)

    # Planning.

    def plan(self) -> StepPlan | None:
        """The next step, in flight from now on; None if there is nothing to do before a result comes."""
        step = self._planner.fill(self._next_step)
        if not (step.works or self.manager.tiers.n_moves or self._ended):
            if self._flights or not self.n_unfinished:
                return None
            step = self._planner.clear_the_way(self._next_step)
        if step.inits:
            now = self._clock.now()
            for flying in step.works:
                if flying.seq.first_scheduled is None:
                    flying.seq.first_scheduled = now
        step.count(self._witnesses, overlapped=bool(self._flights))
        self._capacity.planned(step.samples)
        moves = self.manager.take_moves()
        self._flights.append(step.flight(moves))
        self._next_step += 1
        ended, self._ended = tuple(self._ended), []
        return step.plan(moves, ended, self._residents.take_left())

    # Applying.

    def apply(self, result: StepResult) -> list[SequenceUpdate]:
        """Takes in the result of the oldest step in flight. Raises ``IntegrityError`` if it is not of that step."""
        flight = self._flights.popleft() if self._flights else None
        if flight is None or flight.step != result.step or len(flight.works) != len(result.results):
            expected = None if flight is None else (flight.step, len(flight.works))
            raise IntegrityError(f"result of step {result.step}, {len(result.results)} works; expected {expected}")
        self.manager.settle(flight.moves, result.failed_moves)
        updates: list[SequenceUpdate] = []
        now = self._clock.now()
        for flying, one in zip(flight.works, result.results, strict=True):
            seq = flying.seq
            seq.land(flying.work, samples=flying.samples)
            # What comes back for a sequence that has ended meanwhile is dropped.
            if seq.state is not SequenceState.FINISHED:
                self._take(flying, one, now, updates)
            self.manager.drop(flying.lease)
        for lease in flight.sources:
            self.manager.drop(lease)
        if self._groups:
            for request_id in dict.fromkeys(flying.seq.request.request_id for flying in flight.works):
                updates += self._turn(request_id)
        return updates

    def _take(self, flying: Flying, one: SeqResult, now: float, updates: list[SequenceUpdate]) -> None:
        """News of one live sequence; it may have been preempted meanwhile, its tokens count all the same."""
        seq = flying.seq
        if one.error is not None:
            if seq.n_candidates:
                updates += self._end_request(seq.request.request_id, FinishReason.ERROR, RequestError(one.error))
            else:
                updates.append(self._end(seq, FinishReason.ERROR, error=RequestError(one.error)))
            return
        seq.extend(one.tokens)
        self._check_result(flying, one)
        if seq.state is SequenceState.RUNNING:
            seq.computed = one.computed
        self.manager.commit(flying.lease, seq.keys, one.computed)
        seq.n_drafts += one.n_drafts
        seq.n_accepted += one.n_accepted
        self._witnesses["drafts_proposed"] += one.n_drafts
        self._witnesses["drafts_accepted"] += one.n_accepted
        if one.n_drafts:
            self._pace.checked(one.n_accepted)
        prompt_logprobs = self._new_prompt_logprobs(flying, one) if one.prompt_logprobs else ()
        context_logits = self._new_context_logits(flying, one)
        if one.finish is not None:
            news = {"tokens": one.tokens, "logprobs": one.logprobs, "prompt_logprobs": prompt_logprobs}
            news |= {"context_logits": context_logits, "generation_logits": one.generation_logits}
            updates.append(self._end(seq, one.finish, stop_reason=one.stop_reason, pooled=one.pooled, **news))
            return
        if seq.n_candidates:
            if one.candidates:
                self._beams.take(self._groups[seq.request.request_id], seq, one.candidates)
            if prompt_logprobs or context_logits is not None:
                updates += [
                    self._update(seq, now, prompt_logprobs=prompt_logprobs, context_logits=part, index=index)
                    for index, part in enumerate((context_logits, *(None,) * (seq.request.n - 1)))
                ]
            return
        if one.tokens:
            self._proposer.extend(seq.seq_id, one.tokens)
        if one.tokens or prompt_logprobs or context_logits is not None:
            updates.append(
                self._update(
                    seq,
                    now,
                    one.tokens,
                    one.logprobs,
                    prompt_logprobs,
                    context_logits=context_logits,
                    generation_logits=one.generation_logits,
                )
            )

    @staticmethod
    def _check_result(flying: Flying, one: SeqResult) -> None:
        """A live sequence that sampled has one token more than it has computed, and stays below its limit."""
        seq, n_tokens = flying.seq, len(flying.seq.tokens)
        in_step = one.seq_id == seq.seq_id and one.computed <= min(n_tokens, flying.work.end)
        if one.finish is None:
            expected = n_tokens - 1 if flying.samples and not seq.n_candidates else flying.work.end
            in_step = in_step and bool(one.candidates) == (flying.samples and seq.n_candidates > 0)
            in_step = in_step and one.computed == expected and n_tokens < seq.max_length
        if not in_step:
            raise IntegrityError(f"worker and scheduler disagree about {seq}: {flying.work} gave {one}")

    @staticmethod
    def _new_prompt_logprobs(flying: Flying, one: SeqResult) -> tuple[TokenLogprobs, ...]:
        """The entries that were not sent before a preemption."""
        seq = flying.seq
        new = one.prompt_logprobs[seq.n_prompt_logprobs - flying.work.start :]
        seq.n_prompt_logprobs += len(new)
        return new

    @staticmethod
    def _new_context_logits(flying: Flying, one: SeqResult) -> Any:
        """The rows that were not sent before a preemption; None if there are none."""
        if one.context_logits is None:
            return None
        seq = flying.seq
        new = one.context_logits[seq.n_context_logits - flying.work.start :]
        seq.n_context_logits += len(new)
        return new if len(new) else None

    def _update(
        self,
        seq: Sequence,
        now: float,
        tokens: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprobs, ...] = (),
        prompt_logprobs: tuple[TokenLogprobs, ...] = (),
        finish: FinishReason | None = None,
        stop_reason: int | str | None = None,
        error: Exception | None = None,
        pooled: Pooled | None = None,
        cumulative_logprob: float | None = None,
        context_logits: Any = None,
        generation_logits: Any = None,
        index: int | None = None,
    ) -> SequenceUpdate:
        """``index``: of the output, where it is not the sequence's own."""
        return SequenceUpdate(
            seq.request.request_id,
            seq.index if index is None else index,
            tokens,
            logprobs,
            prompt_logprobs,
            finish,
            stop_reason,
            error,
            seq.cached_tokens or 0,
            seq.miss,
            seq.n_preempted,
            now,
            seq.first_scheduled,
            seq.n_drafts,
            seq.n_accepted,
            pooled,
            cumulative_logprob,
            context_logits,
            generation_logits,
        )

    # Beams.

    def _turn(self, request_id: int) -> list[SequenceUpdate]:
        """The next token of a request's beams, if all of them have given candidates."""
        group = self._groups.get(request_id)
        if group is None or not group.is_complete:
            return []
        moves = group.advance()
        if group.search.done:
            return self._end_group(group)
        self._beams.change(group, moves, self._let_go)
        return []

    def _end_group(
        self, group: BeamGroup, reason: FinishReason | None = None, error: Exception | None = None
    ) -> list[SequenceUpdate]:
        """Ends a request with beams: by itself, or for a reason. Cut short, the best there is so far comes back."""
        seq, now = group.living[0], self._clock.now()
        found = group.search.best(group.request.n) if reason is not FinishReason.ERROR else []
        updates = []
        for index in range(group.request.n):
            # Masks may leave fewer texts than were asked for: the others are empty, and as unlikely as can be.
            one = found[index] if index < len(found) else None
            finish = reason or (one.finish if one else FinishReason.STOP)
            self._witnesses[_WITNESS_OF_END.get(finish, "finished")] += 1
            update = self._update(
                seq,
                now,
                tokens=one.text.tokens() if one else (),
                logprobs=one.text.logprobs() if one else (),
                generation_logits=one.text.logits() if one else None,
                finish=finish,
                stop_reason=one.stop_reason if one and reason is None else None,
                error=error,
                cumulative_logprob=one.text.cumulative if one else -math.inf,
                index=index,
            )
            updates.append(update)
        del self._groups[group.request.request_id]
        for beam in group.living:
            self._let_go(beam)
        return updates

    # Ending.

    def _end(
        self,
        seq: Sequence,
        reason: FinishReason,
        *,
        stop_reason: int | str | None = None,
        error: Exception | None = None,
        tokens: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprobs, ...] = (),
        prompt_logprobs: tuple[TokenLogprobs, ...] = (),
        pooled: Pooled | None = None,
        context_logits: Any = None,
        generation_logits: Any = None,
    ) -> SequenceUpdate:
        """A sequence ends, whatever it was doing."""
        self._let_go(seq)
        if self._options.tells_ends:
            self._ended.append(SeqEnd(seq.seq_id, reason))
        self._witnesses[_WITNESS_OF_END.get(reason, "finished")] += 1
        now = self._clock.now()
        return self._update(
            seq,
            now,
            tokens,
            logprobs,
            prompt_logprobs,
            reason,
            stop_reason,
            error,
            pooled,
            context_logits=context_logits,
            generation_logits=generation_logits,
        )

    def _end_request(
        self, request_id: int, reason: FinishReason, error: Exception | None = None
    ) -> list[SequenceUpdate]:
        """All outputs of a request end; nothing happens if it has ended already."""
        group = self._groups.get(request_id)
        if group is not None:
            return self._end_group(group, reason, error)
        return [self._end(seq, reason, error=error) for seq in list(self._requests.get(request_id, {}).values())]

    def _let_go(self, seq: Sequence) -> None:
        """The one place where everything that a sequence had is given back."""
        if seq.state is SequenceState.RUNNING:
            self._residents.leave(seq, SequenceState.FINISHED)
        else:
            self._waiting.discard(seq)
            seq.state = SequenceState.FINISHED
        if seq.in_proposer:
            self._proposer.drop(seq.seq_id)
        request_id = seq.request.request_id
        live = self._requests[request_id]
        del live[seq.index]
        if not live:
            del self._requests[request_id]
            if seq.request.deadline is not None:
                self._deadlines.died()

    # Looking in.

    @property
    def n_unfinished(self) -> int:
        """Sequences that run or wait."""
        return len(self._residents) + len(self._waiting)

    @property
    def n_in_flight(self) -> int:
        """Steps planned and not applied."""
        return len(self._flights)

    @property
    def next_deadline(self) -> float | None:
        """Clock reading at which ``ingest`` has something to end, if nothing else happens before."""
        top = self._deadlines.peek()
        return None if top is None else top[0]

    @property
    def live(self) -> list[tuple[int, int]]:
        """(request id, index) of every output that has not ended."""
        open_of: dict[int, Iterable[int]] = {**self._requests}
        open_of |= {request_id: range(group.request.n) for request_id, group in self._groups.items()}
        return [(request_id, index) for request_id, indices in open_of.items() for index in indices]

    def counters(self) -> dict[str, int]:
        """Witnesses since the start: which features acted."""
        return {**self._witnesses, "beam_forks": self._beams.n_forks, **self.manager.counters}

    def stats(self) -> dict[str, Any]:
        """A snapshot, with TensorRT-LLM's keys where it has them."""
        n_running = len(self._residents)
        return {
            "numActiveRequests": n_running,
            "numQueuedRequests": len(self._waiting),
            "numPrefixWaiters": self._waiting.n_parked,
            "numStepsInFlight": len(self._flights),
            "kvCacheStats": self.manager.stats(),
        }

    def check_integrity(self) -> None:
        """Raises ``IntegrityError`` if a block, lease, slot or sequence is out of balance. Any time."""
        self.manager.check_integrity()
        self._residents.check()
        live = [seq for sequences in self._requests.values() for seq in sequences.values()]
        if len(live) != self.n_unfinished:
            raise IntegrityError(f"{len(live)} live sequences, but {self.n_unfinished} run or wait")
        flying = Counter(flying.seq for flight in self._flights for flying in flight.works)
        for seq in {*live, *flying}:
            if seq.n_flying != flying[seq]:
                raise IntegrityError(f"{seq}: {flying[seq]} works are in flight")
        sources = sum(len(flight.sources) for flight in self._flights)
        expected = len(self._residents) + self.manager.n_limbo + sources
        if self.manager.n_leases != expected:
            raise IntegrityError(f"{self.manager.n_leases} leases hold blocks, {expected} should")


_WITNESS_OF_END = {
    FinishReason.CANCELLED: "cancelled",
    FinishReason.TIMEOUT: "timeouts",
    FinishReason.ERROR: "failed",
}
