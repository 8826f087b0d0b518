"""Compiles the grammars of requests beside the loop, before the loop sees the requests."""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
from collections.abc import Callable
from typing import NamedTuple

from headrace.core.clock import Clock
from headrace.core.errors import EngineDeadError, RequestError
from headrace.core.plan import FinishReason
from headrace.core.request import Request
from headrace.guided.contract import Grammar

from .loop import EngineLoop

log = logging.getLogger("headrace")

Compile = Callable[[Request], Grammar]
"""From a request to its grammar; safe to use from several threads. Raises ``RequestError``."""

_N_THREADS = 2
"""One grammar that takes long does not hold up all others."""
LIMIT = 30.0
"""Seconds that a grammar may take, its wait for a turn included."""


class _Job(NamedTuple):
    request: Request
    loop: EngineLoop
    timer: threading.Timer


class GrammarCompiling:
    """Takes in requests with ``guided_decoding``. They go on to the loop with their ``grammar``, or are refused by it:
    the loop holds them from the start, so they can be cancelled, and end with it."""

    def __init__(self, make: Callable[[], Compile], clock: Clock, limit: float = LIMIT) -> None:
        """``make``: called when the first request comes, in a thread of this. May raise ``RequestError``."""
        self._make = make
        self._clock = clock
        self._limit = limit
        self._compile_one: Compile | None = None
        self._making = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def submit(self, request: Request, loop: EngineLoop) -> None:
        """Returns at once. Raises what ``loop.hold`` raises."""
        loop.hold(request)
        self.take(request, loop)

    def take(self, request: Request, loop: EngineLoop) -> None:
        """As ``submit``, for a request that the loop holds already."""
        timer = threading.Timer(*self._end_of_patience(request, loop))
        timer.daemon = True
        timer.start()
        self._jobs.put(_Job(request, loop, timer))
        if len(self._threads) < _N_THREADS:
            thread = threading.Thread(target=self._run, name="headrace-grammars", daemon=True)
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """Ends the threads when they have done what they are at."""
        for _ in self._threads:
            self._jobs.put(None)

    def _end_of_patience(self, request: Request, loop: EngineLoop) -> tuple[float, Callable[[], None]]:
        """In how many seconds what happens, if the grammar is not there by then."""
        left = None if request.deadline is None else max(0.0, request.deadline - self._clock.now())
        if left is not None and left < self._limit:
            return left, lambda: loop.refuse(request.request_id, FinishReason.TIMEOUT)
        error = RequestError(
            f"guided_decoding: the grammar was not compiled within {self._limit:g} seconds; make it simpler",
            param="guided_decoding",
        )
        return self._limit, lambda: loop.refuse(request.request_id, FinishReason.ERROR, error)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if job.loop.holds(job.request.request_id):
                self._compile(job)
            job.timer.cancel()

    def _compile(self, job: _Job) -> None:
        request, loop = job.request, job.loop
        params = request.sampling.guided_decoding
        assert params is not None
        try:
            try:
                grammar = self._get_compile()(request)
            except RequestError as error:
                loop.refuse(request.request_id, FinishReason.ERROR, error)
            except Exception as error:
                log.exception("a grammar ended its compiler")
                reason = RequestError(
                    f"guided_decoding.{params.kind}: {type(error).__name__}: {error}", param=params.kind
                )
                loop.refuse(request.request_id, FinishReason.ERROR, reason)
            else:
                loop.release(dataclasses.replace(request, grammar=grammar))
        except EngineDeadError:
            pass  # whoever waited has been told by the loop

    def _get_compile(self) -> Compile:
        with self._making:
            if self._compile_one is None:
                self._compile_one = self._make()
            return self._compile_one
