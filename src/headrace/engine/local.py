"""The backend in this process: a loop on its thread, over an executor."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from headrace.core.clock import Clock
from headrace.core.errors import ConfigError, EngineDeadError, IntegrityError, RequestError
from headrace.core.outputs import EngineHealth, SequenceUpdate
from headrace.core.plan import FinishReason
from headrace.core.request import Request
from headrace.executor.base import Executor
from headrace.sched.scheduler import Scheduler
from headrace.tokenizer.tokenizer import Tokenizer

from .adapters import NO_ADAPTER_LOADING, AdapterLoading
from .backend import Deliver, Fail
from .grammars import GrammarCompiling
from .loop import EngineLoop, tell_nobody
from .stats import StatsRecorder
from .stop_texts import BeamText


def _stats(scheduler: Scheduler, recorder: StatsRecorder) -> list[dict[str, Any]]:
    """Iterations since the last call, then a snapshot with ``witnesses``."""
    return [*recorder.drain(), scheduler.stats() | {"witnesses": recorder.witnesses()}]


def _check_integrity(scheduler: Scheduler, recorder: StatsRecorder) -> None:
    """Raises ``IntegrityError`` if the books of the scheduler or the cache do not balance."""
    scheduler.check_integrity()


def _check_idle(scheduler: Scheduler, recorder: StatsRecorder) -> None:
    """As check_integrity; raises too if anything is under way or holds memory."""
    scheduler.check_integrity()
    stats = scheduler.stats()
    left = {
        "sequences": scheduler.n_unfinished,
        "leases": scheduler.manager.n_leases,
        **{name: stats[name] for name in ("numActiveRequests", "numQueuedRequests", "numStepsInFlight")},
    }
    if any(left.values()):
        raise IntegrityError(f"the engine is not idle: {left}")


def _kv_cache_events(scheduler: Scheduler, recorder: StatsRecorder) -> list[dict[str, Any]]:
    """Events of the prefix index since the last call. Raises ``RequestError`` where none are kept."""
    return scheduler.manager.take_events()


QUESTIONS: dict[str, Callable[[Scheduler, StatsRecorder], Any]] = {
    "stats": _stats,
    "check_integrity": _check_integrity,
    "check_idle": _check_idle,
    "kv_cache_events": _kv_cache_events,
}
"""What ``Backend.call`` can be asked. The answers are made of lists, dicts, texts and numbers."""


_OF_ADAPTERS = {"load_adapter": "load", "unload_adapter": "unload", "adapters": "describe"}
"""Further calls, which adapters answer: their methods."""


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


class LocalBackend:
    """``Backend`` over an executor that has started."""

    def __init__(
        self,
        executor: Executor,
        scheduler: Scheduler,
        depth: int,
        clock: Clock,
        stats: StatsRecorder,
        grammars: GrammarCompiling,
        get_tokenizer: Callable[[], Tokenizer | None],
        adapters: AdapterLoading = NO_ADAPTER_LOADING,
    ) -> None:
        """``depth``: steps in flight. ``get_tokenizer``: asked when the text of beams is looked at."""
        self._get_tokenizer = get_tokenizer
        self._grammars = grammars
        self._adapters = adapters
        self.executor = executor
        self._scheduler = scheduler
        self._depth = depth
        self._clock = clock
        self._stats = stats
        self._loop: EngineLoop | None = None
        self._fail: Fail = tell_nobody
        self._given_up: EngineDeadError | None = None

    def start(self, deliver: Deliver, fail: Fail, on_end: Fail = tell_nobody) -> None:
        """``on_end`` is told why the loop has ended, before the requests under way are."""
        self._fail = fail

        def sink(updates: list[SequenceUpdate]) -> None:
            self._adapters.observe(updates)
            deliver(updates)

        self._loop = EngineLoop(
            self.executor, self._scheduler, self._depth, sink, self._clock, self._stats.observe, on_end
        )
        self._loop.start()

    @property
    def loop(self) -> EngineLoop:
        if self._loop is None:
            raise RuntimeError("the backend is used before start()")
        return self._loop

    def submit(self, request: Request) -> None:
        self._check_alive()
        if request.sampling.use_beam_search and request.sampling.stop:
            request = self._with_beam_text(request)
        if request.lora is not None:
            self._adapters.submit(request, self.loop, self._go_on)
        elif request.sampling.guided_decoding is None:
            self.loop.submit(request)
        else:
            self._grammars.submit(request, self.loop)

    def _with_beam_text(self, request: Request) -> Request:
        tokenizer = self._get_tokenizer()
        if tokenizer is None:
            raise RequestError("stop texts need a tokenizer; give stop_token_ids", param="stop")
        return replace(request, beam_text=BeamText(request, tokenizer))

    def _go_on(self, request: Request) -> None:
        """The adapter of a held request is there."""
        if request.sampling.guided_decoding is None:
            self.loop.release(request)
        else:
            self._grammars.take(request, self.loop)

    def cancel(self, request_id: int) -> None:
        self._check_alive()
        self.loop.cancel(request_id)

    def finish(self, request_id: int, index: int, reason: FinishReason) -> None:
        self.loop.finish(request_id, index, reason)

    def call(self, name: str, *args: str) -> Future[Any]:
        self._check_alive()
        if name in _OF_ADAPTERS:
            answer = getattr(self._adapters, _OF_ADAPTERS[name])(*args)
            return answer if isinstance(answer, Future) else _done(answer)
        question = QUESTIONS.get(name)
        if question is None:
            every = ", ".join((*QUESTIONS, *_OF_ADAPTERS))
            raise ConfigError(f"the engine has no call {name!r}; it has {every}")
        return self.loop.call_in_loop(lambda scheduler: question(scheduler, self._stats))

    def health(self) -> EngineHealth:
        loop = self.loop
        is_idle = loop.is_idle
        heartbeat = self._clock.now() if is_idle else loop.heartbeat
        return EngineHealth(dead=self._given_up or loop.dead, is_idle=is_idle, heartbeat=heartbeat)

    def kill(self, error: EngineDeadError) -> None:
        """A thread cannot be ended from outside: it ends by itself when its step comes back."""
        self._given_up = error
        self.loop.stop(drain=False, timeout=0)
        self._fail(error)

    def shutdown(self) -> None:
        if self._loop is not None:
            self._loop.stop(drain=False, timeout=30)
        self._grammars.close()
        self._adapters.close()
        self.executor.close()

    def _check_alive(self) -> None:
        if self._given_up is not None:
            raise EngineDeadError(str(self._given_up)) from self._given_up
