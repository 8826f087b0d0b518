"""The loop: its thread, its inbox, its ends; with the real scheduler and the simulated worker behind it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from headrace.cache.arena import arena_for_tokens
from headrace.cache.groups import group_layers
from headrace.cache.manager import CacheManager, CacheOptions
from headrace.cache.specs import FullKV
from headrace.core.clock import SystemClock
from headrace.core.errors import EngineDeadError, PromptTooLongError
from headrace.core.outputs import SequenceUpdate
from headrace.core.plan import FinishReason, StepPlan, StepResult
from headrace.core.request import Request
from headrace.core.sampling_params import SamplingParams
from headrace.engine.loop import EngineLoop
from headrace.executor.base import Capacity
from headrace.executor.sim import SimCost, SimExecutor
from headrace.sched.options import SchedulerOptions
from headrace.sched.scheduler import Scheduler
from headrace.spec.proposer import NoProposer

WAIT = 10.0


class RealTimeSim(SimExecutor):
    """The sim executor on the machine's clock: a step is over when its time has really passed."""

    def _land(self, done: float) -> None:
        self._in_flight.popleft()
        time.sleep(max(0.0, done - self._clock.now()))


class Engine:
    """A loop over the simulated worker, and what came out of it."""

    def __init__(self, depth: int = 2, step_seconds: float = 0.0002) -> None:
        groups = group_layers([FullKV(1, 16, 2)])
        arena = arena_for_tokens(groups, 2048)
        clock = SystemClock()
        self.clock = clock
        self.manager = CacheManager(groups, arena, CacheOptions())
        self.scheduler = Scheduler(self.manager, SchedulerOptions(4, 64, 512, depth=depth), NoProposer(), clock)
        self.executor = RealTimeSim(Capacity(4, 512, 50, groups, arena), clock, SimCost(step_seconds, 0.0))
        self.updates: list[SequenceUpdate] = []
        self.steps_with_news = 0
        self.news = threading.Condition()
        self.loop = EngineLoop(self.executor, self.scheduler, depth, self.take, clock)

    def take(self, updates: list[SequenceUpdate]) -> None:
        with self.news:
            self.updates += updates
            self.steps_with_news += 1
            self.news.notify_all()

    def request(self, request_id: int, max_tokens: int = 8, deadline: float | None = None) -> Request:
        prompt = tuple((request_id + j) % 50 for j in range(20))
        sampling = SamplingParams(max_tokens=max_tokens)
        return Request(request_id, prompt, sampling, 0, self.clock.now(), deadline=deadline)

    def ends(self) -> dict[int, SequenceUpdate]:
        return {update.request_id: update for update in self.updates if update.finish_reason is not None}

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.news:
            assert self.news.wait_for(condition, WAIT), (
                f"nothing of the kind within {WAIT} seconds: {self.updates[-3:]}"
            )

    def wait_for_end(self, *request_ids: int) -> None:
        self.wait(lambda: self.ends().keys() >= set(request_ids))


@pytest.fixture
def engine():
    built = Engine()
    built.loop.start()
    yield built
    built.loop.stop(drain=False, timeout=WAIT)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_without_a_thread_the_loop_is_turned_by_hand(depth: int) -> None:
    engine = Engine(depth)
    for request_id in range(6):
        engine.loop.submit(engine.request(request_id))
    engine.loop.run_until_idle()
    assert {end.finish_reason for end in engine.ends().values()} == {FinishReason.LENGTH}
    assert len(engine.ends()) == 6
    assert (engine.scheduler.counters()["overlapped_steps"] > 0) == (depth > 1)
    engine.scheduler.check_integrity()
    assert engine.manager.n_leases == 0
    assert not engine.loop.run_turn(), "nothing is left to do"


def test_the_depth_does_not_change_the_tokens() -> None:
    streams = []
    for depth in (1, 2, 3):
        engine = Engine(depth)
        for request_id in range(6):
            engine.loop.submit(engine.request(request_id, 30))
        engine.loop.run_until_idle()
        streams.append([[t for u in engine.updates if u.request_id == i for t in u.tokens] for i in range(6)])
    assert streams[0] == streams[1] == streams[2]


def test_requests_come_from_many_threads(engine: Engine) -> None:
    def send(first: int) -> None:
        for request_id in range(first, first + 10):
            engine.loop.submit(engine.request(request_id))

    threads = [threading.Thread(target=send, args=(100 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.wait_for_end(*(100 * i + j for i in range(4) for j in range(10)))
    engine.wait(lambda: engine.loop.is_idle)
    assert engine.loop.call_in_loop(lambda scheduler: scheduler.check_integrity()).result(WAIT) is None
    assert engine.manager.n_leases == 0


def test_an_idle_loop_sleeps_and_wakes_at_once(engine: Engine) -> None:
    engine.loop.submit(engine.request(1))
    engine.wait_for_end(1)
    time.sleep(0.05)
    beat = engine.loop.heartbeat
    time.sleep(0.1)
    assert engine.loop.heartbeat == beat, "an idle loop does not turn"
    begin = time.monotonic()
    engine.loop.submit(engine.request(2, 1))
    engine.wait_for_end(2)
    assert time.monotonic() - begin < 1.0
    assert engine.loop.heartbeat > beat


def test_cancel_and_finish_from_outside(engine: Engine) -> None:
    engine.loop.submit(engine.request(1, 400))
    engine.loop.submit(engine.request(2, 400))
    engine.wait(lambda: len(engine.updates) > 4)
    engine.loop.cancel(1)
    engine.loop.finish(2, 0, FinishReason.STOP, "word")
    engine.wait_for_end(1, 2)
    assert engine.ends()[1].finish_reason is FinishReason.CANCELLED
    assert (engine.ends()[2].finish_reason, engine.ends()[2].stop_reason) == (FinishReason.STOP, "word")
    engine.loop.cancel(1)
    engine.loop.cancel(12345)
    engine.loop.submit(engine.request(3))
    engine.wait_for_end(3)


def test_a_deadline_ends_a_request(engine: Engine) -> None:
    engine.loop.submit(engine.request(1, 400, deadline=engine.clock.now() + 0.02))
    engine.wait_for_end(1)
    assert engine.ends()[1].finish_reason is FinishReason.TIMEOUT
    assert engine.ends()[1].time < engine.clock.now()


def test_what_can_never_fit_is_refused_in_the_callers_thread(engine: Engine) -> None:
    with pytest.raises(PromptTooLongError, match="max_seq_len=512"):
        engine.loop.submit(engine.request(1, 500))


def test_a_call_in_the_loop_returns_or_raises_to_its_caller(engine: Engine) -> None:
    assert engine.loop.call_in_loop(lambda scheduler: threading.current_thread().name).result(WAIT) == "headrace-loop"
    with pytest.raises(ZeroDivisionError):
        engine.loop.call_in_loop(lambda scheduler: 1 // 0).result(WAIT)
    engine.loop.submit(engine.request(1))
    engine.wait_for_end(1)


def test_stop_drains() -> None:
    engine = Engine()
    engine.loop.start()
    for request_id in range(3):
        engine.loop.submit(engine.request(request_id, 40))
    assert engine.loop.stop(drain=True, timeout=WAIT)
    assert [engine.ends()[i].finish_reason for i in range(3)] == [FinishReason.LENGTH] * 3
    with pytest.raises(EngineDeadError, match="shut down"):
        engine.loop.submit(engine.request(9))
    assert engine.loop.stop(drain=True, timeout=WAIT), "twice is once"


def test_stop_cancels_what_does_not_end_in_time() -> None:
    for drain in (False, True):
        engine = Engine(step_seconds=0.005)
        engine.loop.start()
        engine.loop.submit(engine.request(1, 400))
        engine.wait(lambda built=engine: len(built.updates) > 1)
        begin = time.monotonic()
        assert engine.loop.stop(drain=drain, timeout=0.2)
        assert time.monotonic() - begin < 1.5
        assert engine.ends()[1].finish_reason is FinishReason.CANCELLED
        assert engine.manager.n_leases == 0


def test_stop_before_start() -> None:
    engine = Engine()
    engine.loop.submit(engine.request(1))
    assert engine.loop.stop(drain=True, timeout=1.0)
    assert isinstance(engine.ends()[1].error, EngineDeadError)


def break_executor(engine: Engine) -> None:
    def submit(plan: StepPlan) -> Future[StepResult]:
        future: Future[StepResult] = Future()
        future.set_exception(MemoryError("no memory for the step"))
        return future

    engine.executor.submit = submit


def break_scheduler(engine: Engine) -> None:
    def plan() -> StepPlan:
        raise RuntimeError("a plan that cannot be")

    engine.scheduler.plan = plan


@pytest.mark.parametrize(
    ("damage", "cause"), [(break_executor, "no memory for the step"), (break_scheduler, "a plan that cannot be")]
)
def test_a_broken_invariant_ends_every_request_with_its_cause(damage: Callable[[Engine], None], cause: str) -> None:
    engine = Engine()
    damage(engine)
    for request_id in range(6):
        engine.loop.submit(engine.request(request_id))
    pending = engine.loop.call_in_loop(lambda scheduler: damage(engine))
    engine.loop.start()
    engine.wait_for_end(*range(6))
    for end in engine.ends().values():
        assert end.finish_reason is FinishReason.ERROR
        assert isinstance(end.error, EngineDeadError)
        assert cause in str(end.error)
        assert cause in str(end.error.__cause__)
    assert pending.result(WAIT) is None
    for call in (
        lambda: engine.loop.submit(engine.request(7)),
        lambda: engine.loop.cancel(1),
        lambda: engine.loop.finish(1, 0, FinishReason.STOP),
        lambda: engine.loop.call_in_loop(lambda scheduler: None),
    ):
        with pytest.raises(EngineDeadError, match=cause):
            call()
    assert cause in str(engine.loop.dead)
    assert engine.loop.stop(drain=True, timeout=WAIT)


def test_a_call_that_comes_too_late_is_told_so() -> None:
    engine = Engine()
    waiting = engine.loop.call_in_loop(lambda scheduler: None)
    engine.loop.stop(drain=True, timeout=1.0)
    with pytest.raises(EngineDeadError):
        waiting.result(WAIT)


def test_a_sink_that_raises_loses_nobody() -> None:
    """The news it choked on held the end of one request, which the scheduler has forgotten by then."""
    engine = Engine()
    seen = engine.take

    def choke(updates: list[SequenceUpdate]) -> None:
        if any(update.finish_reason is FinishReason.LENGTH for update in updates):
            raise ValueError("the sink is clogged")
        seen(updates)

    engine.loop._sink = choke
    engine.loop.submit(engine.request(1, 2))
    engine.loop.submit(engine.request(2, 50))
    with pytest.raises(EngineDeadError, match="clogged"):
        engine.loop.run_until_idle()
    assert {1, 2} == set(engine.ends())
    assert all("clogged" in str(end.error) for end in engine.ends().values())


def test_a_sink_that_raises_again_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine()

    def broken(updates: list[SequenceUpdate]) -> None:
        raise ValueError("the sink is gone")

    engine.loop._sink = broken
    engine.loop.submit(engine.request(1, 2))
    with pytest.raises(EngineDeadError, match="the sink is gone"):
        engine.loop.run_until_idle()
    assert "the sink raised while it was told" in caplog.text


def test_the_scheduler_side_imports_no_torch() -> None:
    import subprocess
    import sys

    modules = "headrace.cache.manager, headrace.sched.scheduler, headrace.engine.loop, headrace.executor.sim"
    code = f"import sys, {modules}; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "False"]
