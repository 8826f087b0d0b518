"""A scheduler, a cache and a simulated worker, driven step by step, with every promise checked on the way."""

from __future__ import annotations

import random
import sys
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from plain_beams import plain_beams

from headrace.cache.arena import arena_for_tokens
from headrace.cache.groups import group_layers
from headrace.cache.manager import CacheManager, CacheOptions
from headrace.cache.specs import CacheSpec, ChunkedKV, FullKV, RecurrentState, SlidingKV
from headrace.core.clock import VirtualClock
from headrace.core.errors import RequestError
from headrace.core.outputs import SequenceUpdate
from headrace.core.plan import FinishReason, Rows, SlotInit, StepPlan, StepResult, TokenLogprobs
from headrace.core.request import Request
from headrace.core.sampling_params import SamplingParams
from headrace.executor.base import Capacity
from headrace.executor.sim import SimExecutor
from headrace.executor.sim_model import PlainRun, plain_run
from headrace.sched.commands import Cancel, Command, Finish, Submit
from headrace.sched.options import SchedulerOptions
from headrace.sched.scheduler import Scheduler
from headrace.spec import WorkerProposer
from headrace.spec.ngram import NGramProposer
from headrace.spec.proposer import NoProposer, Proposer

EOS, STOP = 0, 1


def full(heads: int = 1) -> FullKV:
    return FullKV(heads, 16, 2)


def sliding(window: int, heads: int = 1) -> SlidingKV:
    return SlidingKV(heads, 16, 2, window)


def in_chunks(chunk: int, heads: int = 1) -> ChunkedKV:
    return ChunkedKV(heads, 16, 2, chunk)


def state(n_floats: int = 64) -> RecurrentState:
    return RecurrentState(n_floats)


@dataclass(frozen=True)
class RigConfig:
    """What a rig is built from."""

    specs: tuple[CacheSpec, ...] = (full(),)
    arena_tokens: int = 512
    vocab_size: int = 8
    scheduler: SchedulerOptions = field(default_factory=lambda: SchedulerOptions(4, 64, 128, depth=2))
    cache: CacheOptions = field(default_factory=CacheOptions)
    proposer: str = "none"
    """none, ngram, seer (often right, waits for tokens), blind (guesses without waiting) or worker (drafts there)."""


class SeerProposer:
    """Knows what is going to come, and is wrong now and then. ``needs_tokens`` False: it guesses from stale tokens."""

    def __init__(self, rig: Rig, needs_tokens: bool, max_drafts: int = 4) -> None:
        self.needs_tokens = needs_tokens
        self._rig = rig
        self._max_drafts = max_drafts
        self._random = random.Random(1)
        self._known: dict[int, int] = {}
        self._future: dict[int, tuple[int, ...]] = {}

    def admit(self, seq_id: int, tokens: list[int]) -> None:
        assert seq_id not in self._known
        live = self._rig.scheduler._requests
        seq = next(seq for of in live.values() for seq in of.values() if seq.seq_id == seq_id)
        self._known[seq_id] = len(tokens)
        self._future[seq_id] = seq.request.prompt_token_ids + self._rig.plain(seq.request, seq.index).tokens

    def extend(self, seq_id: int, tokens: tuple[int, ...]) -> None:
        self._known[seq_id] += len(tokens)

    def propose(self, seq_id: int, limit: int) -> tuple[int, ...]:
        begin = self._known[seq_id] + (0 if self.needs_tokens else self._random.randrange(2))
        guess = self._future[seq_id][begin : begin + min(limit, self._random.randrange(self._max_drafts + 1))]
        return tuple(token if self._random.random() < 0.8 else self._random.randrange(8) for token in guess)

    def drop(self, seq_id: int) -> None:
        del self._known[seq_id], self._future[seq_id]


@dataclass
class Output:
    """All that came back for one sequence."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    last: SequenceUpdate | None = None

    @property
    def finish(self) -> FinishReason | None:
        return None if self.last is None else self.last.finish_reason


class Rig:
    """``plan`` and ``apply`` as the test likes; what comes back is compared with the plain run of each request."""

    def __init__(self, config: RigConfig) -> None:
        self.config = config
        self.clock = VirtualClock()
        groups = group_layers(config.specs)
        arena = arena_for_tokens(groups, config.arena_tokens)
        options = config.scheduler
        self.manager = CacheManager(groups, arena, config.cache, self.clock)
        self.executor = SimExecutor(
            Capacity(options.max_batch_size, options.max_seq_len, config.vocab_size, groups, arena), self.clock
        )
        self.proposer = self._proposer(config.proposer)
        self.scheduler = Scheduler(self.manager, options, self.proposer, self.clock)
        self.in_flight: deque[Future[StepResult]] = deque()
        self.requests: dict[int, Request] = {}
        self.outputs: dict[tuple[int, int], Output] = {}
        self.plans: list[StepPlan] = []
        self.keep_plans = False
        self._plain: dict[tuple[int, int], PlainRun] = {}
        self._plain_beams: dict[int, list] = {}

    def _proposer(self, name: str) -> Proposer:
        if name == "ngram":
            return NGramProposer(max_draft_len=4, max_matching_ngram_size=2)
        if name == "worker":
            return WorkerProposer(max_draft_len=4)
        return NoProposer() if name == "none" else SeerProposer(self, needs_tokens=name == "seer")

    # Driving.

    def request(self, prompt: list[int] | tuple[int, ...], max_tokens: int | None = 8, **options: object) -> Request:
        """A request; options are fields of ``Request`` or of ``SamplingParams``."""
        names = ("priority", "deadline", "cache_salt", "seed", "eos_ids", "pooling", "asks")
        of_request = {name: options.pop(name) for name in names if name in options}
        sampling = SamplingParams(max_tokens=max_tokens, **options)
        base = Request(len(self.requests), tuple(prompt), sampling, 7, self.clock.now(), frozenset({EOS}))
        return replace(base, **of_request)

    def submit(self, prompt: list[int] | tuple[int, ...], max_tokens: int | None = 8, **options: object) -> Request:
        request = self.request(prompt, max_tokens, **options)
        self.requests[request.request_id] = request
        self.outputs |= {(request.request_id, index): Output() for index in range(request.n)}
        self.ingest(Submit(request))
        return request

    def cancel(self, request: Request) -> None:
        self.ingest(Cancel(request.request_id))
        assert all(request_id != request.request_id for request_id, _ in self.scheduler.live)

    def finish(self, request: Request, index: int) -> None:
        self.ingest(Finish(request.request_id, index, FinishReason.STOP, "word"))
        assert (request.request_id, index) not in self.scheduler.live

    def ingest(self, *commands: Command) -> None:
        self._take(self.scheduler.ingest(commands))
        now = self.clock.now()
        late = [rid for rid, _ in self.scheduler.live if (d := self.requests[rid].deadline) is not None and d <= now]
        assert not late, "a deadline has passed and the request still lives"

    def plan(self) -> bool:
        """Plans a step and gives it to the worker; False if there was nothing to plan."""
        before = {seq: seq.n_preempted for seq in self._sequences()}
        plan = self.scheduler.plan()
        self._check_preemptions(before)
        if plan is None:
            return False
        self._check_plan(plan)
        if self.keep_plans:
            self.plans.append(plan)
        self.in_flight.append(self.executor.submit(plan))
        return True

    def apply(self) -> None:
        self._take(self.scheduler.apply(self.in_flight.popleft().result()))

    def drain(self, max_steps: int | None = None) -> int:
        """Runs until nobody is left; the number of steps. Fails if that takes longer than it may."""
        # Beams that do not fit into the cache together are computed again now and again.
        todo = sum(seq.max_length * max(1, 3 * seq.request.sampling.beam_width) for seq in self._sequences())
        limit = 100 + 6 * todo if max_steps is None else max_steps
        steps = 0
        while self.scheduler.n_unfinished or self.in_flight:
            self.ingest()
            while len(self.in_flight) < self.config.scheduler.depth and self.plan():
                steps += 1
            if self.in_flight:
                self.apply()
            self.scheduler.check_integrity()
            assert steps <= limit, f"somebody starves: {steps} steps for {todo} tokens"
        return steps

    # Checking.

    def plain(self, request: Request, index: int) -> PlainRun:
        """The same request alone, without blocks, chunks, drafts or neighbours."""
        key = (request.request_id, index)
        if key not in self._plain:
            self._plain[key] = plain_run(self.executor.model, self._plain_init(request, index))
        return self._plain[key]

    def _plain_init(self, request: Request, index: int) -> SlotInit:
        n_prompt, max_length = len(request.prompt_token_ids), self.scheduler.admission.max_length(request)
        return SlotInit(
            0, 0, request.prompt_token_ids, n_prompt, 0, request.sampling, request.seed, index,
            request.stop_ids, request.eos_ids, max_length, request.pooling, n_candidates=self.config.vocab_size,
        )  # fmt: skip

    def _check_beams(self, request: Request, index: int) -> None:
        """One of the outputs of beam search: that of the plainest search, or the best there was when it was cut."""
        output = self.outputs[request.request_id, index]
        if output.finish in (FinishReason.CANCELLED, FinishReason.TIMEOUT):
            return
        if request.request_id not in self._plain_beams:
            init = self._plain_init(request, index)
            self._plain_beams[request.request_id] = plain_beams(self.executor.model, request, init)
        tokens, total, logprobs, finish = self._plain_beams[request.request_id][index]
        assert tuple(output.tokens) == tokens, f"{request.request_id}.{index} differs from the plain search"
        assert output.last is not None
        assert (output.last.cumulative_logprob, output.finish) == (total, finish)
        assert tuple(output.logprobs) == (logprobs if request.sampling.logprobs is not None else ())
        m = len(output.prompt_logprobs)
        assert m == (0 if request.sampling.prompt_logprobs is None else len(request.prompt_token_ids) - 1)
        assert tuple(output.prompt_logprobs) == self.plain(request, index).prompt_logprobs[:m]

    def check_output(self, request: Request, index: int) -> None:
        """A finished output is the plain run's; one cut short is the beginning of it."""
        output = self.outputs[request.request_id, index]
        assert output.last is not None
        assert output.finish is not None, f"{request} has not ended"
        if output.finish is FinishReason.ERROR:
            assert isinstance(output.last.error, RequestError)
            return
        if request.sampling.use_beam_search:
            self._check_beams(request, index)
            return
        plain = self.plain(request, index)
        if request.pooling is not None:
            ended = output.finish is FinishReason.STOP and output.last.stop_reason != "word"
            want = plain.pooled.to_bytes(8, sys.byteorder) if ended else None
            assert (None if output.last.pooled is None else output.last.pooled.values) == want
        n = len(output.tokens)
        assert tuple(output.tokens) == plain.tokens[:n], f"{request.request_id}.{index} differs from its plain run"
        if request.sampling.logprobs is not None:
            assert tuple(output.logprobs) == plain.logprobs[:n]
        m = len(output.prompt_logprobs)
        assert tuple(output.prompt_logprobs) == plain.prompt_logprobs[:m]
        by_itself = output.finish is FinishReason.LENGTH or (
            output.finish is FinishReason.STOP and output.last.stop_reason != "word"
        )
        if by_itself and request.pooling is None:
            assert n == len(plain.tokens), f"{request.request_id}.{index} ended too early"
            last = plain.tokens[-1]
            assert (output.finish is FinishReason.STOP) == (last in request.stop_ids)
            assert output.last.stop_reason == (last if last in request.stop_ids - request.eos_ids else None)
            if request.sampling.prompt_logprobs is not None:
                assert m == len(request.prompt_token_ids) - 1

    def check_end(self) -> None:
        """Nobody is left: every output is right and everything has been given back."""
        for request in self.requests.values():
            for index in range(request.n):
                self.check_output(request, index)
        self.scheduler.check_integrity()
        assert self.manager.n_leases == 0
        self.manager.evict_all()
        self.manager.check_integrity()
        assert self.manager.pool.n_open == self.manager.layout.n_sectors - 1
        tiers = self.config.cache.tiers
        assert bool(self.manager.index.n_entries) <= bool(tiers.host)

    def _sequences(self) -> list:
        return [seq for of in self.scheduler._requests.values() for seq in of.values()]

    def _take(self, updates: list[SequenceUpdate]) -> None:
        for update in updates:
            output = self.outputs[update.request_id, update.index]
            assert output.finish is None, "news of a sequence that has ended"
            output.tokens += update.tokens
            output.logprobs += update.logprobs
            output.prompt_logprobs += update.prompt_logprobs
            output.last = update

    def _check_plan(self, plan: StepPlan) -> None:
        options = self.config.scheduler
        assert plan.moves or plan.works
        assert bool(plan.works) == bool(plan.n_rows)
        assert plan.n_rows <= options.max_num_tokens
        slots = [work.slot for work in plan.works]
        assert len(slots) == len(set(slots)) <= options.max_batch_size
        assert all(work.n_tokens > 0 and work.end <= options.max_seq_len for work in plan.works)
        assert all(bool(work.draft_tokens) == (work.outputs is Rows.DRAFTS) for work in plan.works)
        if not options.chunked_prefill:
            fresh = {init.seq_id: init for init in plan.inits if len(init.tokens) == init.n_prompt}
            for work in plan.works:
                init = fresh.get(work.seq_id)
                assert init is None or work.end == init.n_prompt or self._was_preempted(work.seq_id)

    def _was_preempted(self, seq_id: int) -> bool:
        return any(seq.seq_id == seq_id and seq.n_preempted for seq in self._sequences())

    def _check_preemptions(self, before: dict) -> None:
        """Nobody is preempted for somebody of lower standing: whoever still runs stands higher than one that went.
        Beams of one request stand alike."""
        gone = [seq.standing[:3] for seq, count in before.items() if seq.n_preempted > count]
        running = [seq.standing[:3] for seq in self.scheduler._residents]
        assert not gone or not running or min(running) <= min(gone)
