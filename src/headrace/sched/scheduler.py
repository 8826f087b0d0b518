"""The scheduler: takes in requests, plans steps, applies results, and ends sequences. It knows no phases.

    ingest(commands) -> updates      new requests, cancels, finishes; deadlines that have passed
    plan()           -> StepPlan     lets ``computed`` catch up with what is known, plus drafts
    apply(result)    -> updates      the oldest step in flight has come back

Any number of steps may be in flight. Not here: how a step is filled (``planner``), what memory there is (``cache``).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

from headrace.cache.lazy_heap import LazyHeap
from headrace.cache.manager import CacheManager
from headrace.core.clock import Clock
from headrace.core.errors import IntegrityError, QueueFullError, RequestError
from headrace.core.outputs import SequenceUpdate
from headrace.core.plan import FinishReason, SeqResult, StepPlan, StepResult, TokenLogprobs
from headrace.core.pooling import Pooled
from headrace.core.request import Request
from headrace.core.sequence import Sequence, SequenceState
from headrace.spec.pace import FULL_PACE, Pace
from headrace.spec.proposer import Proposer

from .admission import Admission
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
    "prefix_waits",
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
        rows_in_flight = options.max_num_tokens * options.depth
        self._capacity = capacity_policy(options.capacity_policy, manager, rows_in_flight)
        self._waiting = WaitingQueue()
        self._residents = Residents(options.max_batch_size, manager, self._capacity)
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
        )
        self._flights: deque[Flight] = deque()
        self._requests: dict[int, dict[int, Sequence]] = {}
        """Live sequences by request id and index."""
        self._deadlines: LazyHeap[dict[int, Sequence]] = LazyHeap(lambda _, live: bool(live))
        self._next_seq_id = 0
        self._next_step = 0

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
                    for seq in self._live(request_id):
                        updates.append(self._end(seq, FinishReason.CANCELLED))
                case Finish(request_id, index, reason, stop_reason):
                    seq = self._requests.get(request_id, {}).get(index)
                    if seq is not None:
                        updates.append(self._end(seq, reason, stop_reason=stop_reason))
                case Control():
                    command.run(self)
        for seq, error in self._planner.failed:
            if seq.state is not SequenceState.FINISHED:
                updates.append(self._end(seq, FinishReason.ERROR, error=error))
        self._planner.failed.clear()
        now = self._clock.now()
        while (top := self._deadlines.peek()) is not None and top[0] <= now:
            for seq in list(top[1].values()):
                updates.append(self._end(seq, FinishReason.TIMEOUT))
        return updates

    def _live(self, request_id: int) -> list[Sequence]:
        return list(self._requests.get(request_id, {}).values())

    def _submit(self, request: Request) -> list[SequenceUpdate]:
        """Puts the sequences of a request in line, or says why not."""
        try:
            max_length = self._accept(request)
        except RequestError as error:
            return self._refuse(request, FinishReason.ERROR, error)
        live = self._requests[request.request_id] = {}
        for index in range(request.n):
            seq = Sequence(self._next_seq_id, request, index, max_length, drafts_wait=self._proposer.needs_tokens)
            self._next_seq_id += 1
            live[index] = seq
            self._waiting.push(seq)
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
        if not step.works:
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
        self._flights.append(step.flight())
        self._next_step += 1
        return step.plan()

    # Applying.

    def apply(self, result: StepResult) -> list[SequenceUpdate]:
        """Takes in the result of the oldest step in flight. Raises ``IntegrityError`` if it is not of that step."""
        flight = self._flights.popleft() if self._flights else None
        if flight is None or flight.step != result.step or len(flight.works) != len(result.results):
            expected = None if flight is None else (flight.step, len(flight.works))
            raise IntegrityError(f"result of step {result.step}, {len(result.results)} works; expected {expected}")
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
        return updates

    def _take(self, flying: Flying, one: SeqResult, now: float, updates: list[SequenceUpdate]) -> None:
        """News of one live sequence; it may have been preempted meanwhile, its tokens count all the same."""
        seq = flying.seq
        if one.error is not None:
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
        if one.finish is not None:
            news = {"tokens": one.tokens, "logprobs": one.logprobs, "prompt_logprobs": prompt_logprobs}
            updates.append(self._end(seq, one.finish, stop_reason=one.stop_reason, pooled=one.pooled, **news))
            return
        if one.tokens:
            self._proposer.extend(seq.seq_id, one.tokens)
        if one.tokens or prompt_logprobs:
            updates.append(self._update(seq, now, one.tokens, one.logprobs, prompt_logprobs))

    @staticmethod
    def _check_result(flying: Flying, one: SeqResult) -> None:
        """A live sequence that sampled has one token more than it has computed, and stays below its limit."""
        seq, n_tokens = flying.seq, len(flying.seq.tokens)
        in_step = one.seq_id == seq.seq_id and one.computed <= min(n_tokens, flying.work.end)
        if one.finish is None:
            expected = n_tokens - 1 if flying.samples else flying.work.end
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
    ) -> SequenceUpdate:
        return SequenceUpdate(
            seq.request.request_id,
            seq.index,
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
        )

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
    ) -> SequenceUpdate:
        """The one place where a sequence ends, whatever it was doing. Everything it had is given back."""
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
        self._witnesses[_WITNESS_OF_END.get(reason, "finished")] += 1
        now = self._clock.now()
        return self._update(seq, now, tokens, logprobs, prompt_logprobs, reason, stop_reason, error, pooled)

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
        """(request id, index) of every sequence that has not ended."""
        return [(request_id, index) for request_id, sequences in self._requests.items() for index in sequences]

    def counters(self) -> dict[str, int]:
        """Witnesses since the start: which features acted."""
        return {**self._witnesses, **self.manager.counters}

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
