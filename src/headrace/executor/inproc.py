"""The in-process executor: the worker computes on a thread of its own, so the loop can plan meanwhile."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from headrace.core.errors import EngineDeadError
from headrace.core.plan import StepPlan, StepResult
from headrace.runner.step import do_nothing
from headrace.runner.worker import Worker

from .base import Capacity


@dataclass(frozen=True, slots=True)
class _Task:
    future: Future
    work: Callable[[], Any]
    is_step: bool


class InprocExecutor:
    """Runs a ``Worker`` on one thread; tasks run in the order they were submitted.

    What a step gave is told when the model of the next step is about to run, if that one is here already: the loop and
    whoever reads then work beside the model, and not beside the worker's own Python, which they would stop.

    ``build`` makes the worker on that thread, since torch keeps its inference mode per thread. A step that raises
    fails its own future; what that means is decided by the loop.
    """

    def __init__(self, build: Callable[[], Worker]) -> None:
        self._build = build
        self._worker: Worker | None = None
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="headrace-worker", daemon=True)
        self._closed = False
        self._tell: Callable[[], None] = do_nothing
        """Completes the future of the last step, once."""

    def start(self) -> Capacity:
        """Builds the model and takes its memory. Raises what the build raises."""
        self._thread.start()

        def build() -> Capacity:
            self._worker = self._build()
            return self._worker.capacity

        return self._enqueue(build).result()

    def submit(self, plan: StepPlan) -> Future[StepResult]:
        worker = self._ready_worker()
        return self._enqueue(lambda: worker.execute(plan, self._tell_before), is_step=True)

    def call(self, name: str, *args: Any) -> Any:
        """Runs the worker's method ``name`` between two steps and returns what it returns."""
        worker = self._ready_worker()
        return self._enqueue(lambda: getattr(worker, name)(*args)).result()

    def health(self) -> None:
        """Raises ``EngineDeadError`` when the worker's thread is gone."""
        if not self._thread.is_alive():
            raise EngineDeadError("the worker thread has ended")

    def close(self) -> None:
        """Ends the thread after the tasks that were submitted. May be called twice."""
        if self._closed:
            return
        self._closed = True
        if self._thread.is_alive():
            worker = self._worker
            end = self._enqueue(worker.close) if worker is not None else None
            self._tasks.put(None)
            self._thread.join()
            self._worker = None
            if end is not None:
                end.result()
        self._worker = None

    def _ready_worker(self) -> Worker:
        if self._worker is None or self._closed:
            raise EngineDeadError("the executor is not running")
        return self._worker

    def _enqueue(self, work: Callable[[], Any], *, is_step: bool = False) -> Future:
        future: Future = Future()
        self._tasks.put(_Task(future, work, is_step))
        return future

    def _tell_before(self) -> None:
        tell, self._tell = self._tell, do_nothing
        tell()

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            if not task.is_step:
                self._tell_before()
            try:
                result = task.work()
            except BaseException as error:  # noqa: BLE001  the future carries it to whoever waits
                tell = partial(task.future.set_exception, error)
            else:
                tell = partial(task.future.set_result, result)
            self._tell_before()
            self._tell = tell
            if self._tasks.empty():
                self._tell_before()
        self._tell_before()
