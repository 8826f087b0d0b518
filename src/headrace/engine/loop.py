"""The engine loop: the only one, for every depth of overlap and every executor.

    commands in  ->  ingest  ->  plan until ``depth`` steps are in flight  ->  wait for the oldest  ->  apply  ->  sink

``run_turn`` is one turn of it; the thread repeats it, and so do tests and the simulator. Idle, the thread sleeps on the
inbox until a command comes or a deadline passes.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from headrace.core.clock import Clock
from headrace.core.errors import EngineDeadError
from headrace.core.outputs import SequenceUpdate
from headrace.core.plan import FinishReason, StepPlan, StepResult
from headrace.core.request import Request
from headrace.executor.base import Executor
from headrace.sched.commands import Cancel, Command, Control, Finish, Refuse, Submit
from headrace.sched.scheduler import Scheduler

log = logging.getLogger("headrace")

T = TypeVar("T")
Sink = Callable[[list[SequenceUpdate]], None]
"""Takes the news of a step, in the loop's thread. It must not block, and if it raises the engine stops."""
Observer = Callable[[StepPlan, StepResult], None]
"""Sees every step that has landed, in the loop's thread: statistics. It must neither block nor raise."""
OnEnd = Callable[[EngineDeadError], None]
"""Is told why the loop has ended, before the requests under way are. It must neither block nor raise."""


def _observe_nothing(plan: StepPlan, result: StepResult) -> None:
    pass


def tell_nobody(dead: EngineDeadError) -> None:
    """For those who hear of the end in another way."""


class EngineLoop:
    """Drives a scheduler and an executor. ``submit``, ``cancel``, ``finish`` and ``call_in_loop`` are safe anywhere.

    Whatever the scheduler, the executor or the sink raises is a broken invariant: the loop stops, every request that is
    under way ends with an ``EngineDeadError`` that names the cause, and so does every later call.
    """

    def __init__(
        self,
        executor: Executor,
        scheduler: Scheduler,
        depth: int,
        sink: Sink,
        clock: Clock,
        observer: Observer = _observe_nothing,
        on_end: OnEnd = tell_nobody,
    ) -> None:
        if depth < 1:
            raise ValueError(f"depth={depth}; at least one step is in flight")
        self._executor = executor
        self._scheduler = scheduler
        self._depth = depth
        self._sink = sink
        self._clock = clock
        self._observer = observer
        self._on_end = on_end
        self._in_flight: deque[tuple[StepPlan, Future[StepResult]]] = deque()
        self._inbox: deque[Command] = deque()
        self._held: dict[int, Request] = {}
        self._wakeup = threading.Condition()
        self._stopping = False
        self._draining = False
        self._dead: EngineDeadError | None = None
        self._undelivered: list[SequenceUpdate] = []
        self._thread: threading.Thread | None = None
        self._heartbeat = clock.now()

    # From any thread.

    def submit(self, request: Request) -> None:
        """Hands a request over. Raises ``RequestError`` if it can never be served, ``EngineDeadError`` after the end;
        what is decided later (a full queue) comes as an update with an error."""
        self._scheduler.admission.max_length(request)
        self._post(Submit(request))

    def hold(self, request: Request) -> None:
        """Announces a request that will be submitted when it is ready: it can be cancelled, and ends with the loop.
        Raises as ``submit`` does."""
        self._scheduler.admission.max_length(request)
        with self._wakeup:
            self._check_open()
            self._held[request.request_id] = request

    def holds(self, request_id: int) -> bool:
        """True until the request is released, refused or cancelled."""
        return request_id in self._held

    def release(self, request: Request) -> None:
        """Submits a request that was held, if it still is."""
        with self._wakeup:
            if self._held.pop(request.request_id, None) is not None:
                self._post(Submit(request))

    def refuse(self, request_id: int, reason: FinishReason, error: Exception | None = None) -> None:
        """Ends a request that was held, if it still is."""
        with self._wakeup:
            request = self._held.pop(request_id, None)
            if request is not None:
                self._post(Refuse(request, reason, error))

    def cancel(self, request_id: int) -> None:
        """Ends a request within one step; one that has ended already is left as it is."""
        with self._wakeup:
            held = self._held.pop(request_id, None)
            self._post(Cancel(request_id) if held is None else Refuse(held, FinishReason.CANCELLED, None))

    def finish(self, request_id: int, index: int, reason: FinishReason, stop_reason: int | str | None = None) -> None:
        """Ends one output of a request: its end was found in the text."""
        self._post(Finish(request_id, index, reason, stop_reason))

    def call_in_loop(self, call: Callable[[Scheduler], T]) -> Future[T]:
        """Runs ``call`` between two steps; what it returns or raises is in the future, and hurts nobody else."""
        future: Future[T] = Future()

        def run(scheduler: Scheduler) -> None:
            try:
                future.set_result(call(scheduler))
            except Exception as error:  # noqa: BLE001  the future carries it to the caller
                future.set_exception(error)

        self._post(Control(run, future.set_exception))
        return future

    @property
    def heartbeat(self) -> float:
        """Clock reading at the start of the last turn, or when work came to an idle loop. One that is idle does not
        turn: see ``is_idle``."""
        return self._heartbeat

    @property
    def is_idle(self) -> bool:
        """True if nothing is under way and nothing waits in the inbox."""
        return not (self._inbox or self._in_flight or self._scheduler.n_unfinished)

    @property
    def dead(self) -> EngineDeadError | None:
        """Why the loop has ended; None while it can go on."""
        return self._dead

    def start(self) -> None:
        """Starts the thread."""
        self._thread = threading.Thread(target=self.run, name="headrace-loop", daemon=True)
        self._thread.start()

    def stop(self, *, drain: bool, timeout: float | None = None) -> bool:
        """Takes no more requests; finishes those under way (``drain``) or cancels them, and ends the thread.

        After ``timeout`` seconds of draining the rest is cancelled. False if the thread is still busy ``timeout``
        seconds after that (a step that does not come back). May be called twice.
        """
        with self._wakeup:
            self._stopping, self._draining = True, drain
            self._wakeup.notify()
        if self._thread is None:
            if self._dead is None:
                self._end(EngineDeadError("the engine was shut down before it was started"))
            return True
        self._thread.join(timeout)
        if self._thread.is_alive() and drain:
            return self.stop(drain=False, timeout=timeout)
        return not self._thread.is_alive()

    def _post(self, command: Command) -> None:
        with self._wakeup:
            if isinstance(command, Submit):
                self._check_open()
            elif self._dead is not None:
                raise EngineDeadError(str(self._dead)) from self._dead
            if self.is_idle:
                self._heartbeat = self._clock.now()
            self._inbox.append(command)
            self._wakeup.notify()

    def _check_open(self) -> None:
        if self._dead is not None:
            raise EngineDeadError(str(self._dead)) from self._dead
        if self._stopping:
            raise EngineDeadError("the engine is shutting down and takes no more requests")

    # In the loop's own thread.

    def run(self) -> None:
        """Turns until ``stop`` or until something breaks."""
        while self._dead is None:
            if self.run_turn():
                continue
            if self._stopping and self.is_idle:
                self._end(EngineDeadError("the engine has been shut down"))
            else:
                self._sleep()

    def run_until_idle(self) -> None:
        """Turns until nothing is left to do, in the caller's thread. Raises ``EngineDeadError`` if something breaks."""
        while not self.is_idle:
            self.run_turn()
            if self._dead is not None:
                raise self._dead

    def run_turn(self) -> bool:
        """One turn; False if there was nothing to do in it. What breaks in a turn ends the loop."""
        self._heartbeat = self._clock.now()
        try:
            return self._turn()
        except Exception as error:  # noqa: BLE001  every failure has the same outcome: nobody is left waiting
            dead = EngineDeadError(f"the engine stopped: {type(error).__name__}: {error}")
            dead.__cause__ = error
            self._end(dead)
            return False

    def _turn(self) -> bool:
        commands = self._take_inbox()
        updates = self._scheduler.ingest(commands)
        self._deliver(updates)
        planned = False
        while len(self._in_flight) < self._depth and (plan := self._scheduler.plan()) is not None:
            self._in_flight.append((plan, self._executor.submit(plan)))
            planned = True
        landed = bool(self._in_flight)
        if landed:
            plan, future = self._in_flight.popleft()
            result = future.result()
            news = self._scheduler.apply(result)
            self._observer(plan, result)
            self._deliver(news)
        return bool(commands or updates or planned or landed)

    def _deliver(self, updates: list[SequenceUpdate]) -> None:
        if updates:
            self._undelivered = updates
            self._sink(updates)
            self._undelivered = []

    def _take_inbox(self) -> list[Command]:
        with self._wakeup:
            commands = list(self._inbox)
            self._inbox.clear()
        if self._stopping and not self._draining:
            commands += [Cancel(request_id) for request_id in dict(self._scheduler.live)]
        return commands

    def _sleep(self) -> None:
        """Waits for a command or for the next deadline."""
        with self._wakeup:
            if self._inbox or self._stopping:
                return
            deadline = self._scheduler.next_deadline
            self._wakeup.wait(None if deadline is None else max(0.0, deadline - self._clock.now()))

    def _end(self, dead: EngineDeadError) -> None:
        """No more calls are taken, and whoever waits for something is told so."""
        with self._wakeup:
            self._dead = dead
            left = list(self._inbox)
            self._inbox.clear()
            held = list(self._held.values())
            self._held.clear()
        self._on_end(dead)
        waiting = dict.fromkeys(self._scheduler.live)
        # What the sink choked on may have held the end of a request that the scheduler no longer knows.
        waiting |= dict.fromkeys((update.request_id, update.index) for update in self._undelivered)
        held += [command.request for command in left if isinstance(command, Submit | Refuse)]
        waiting |= dict.fromkeys((request.request_id, index) for request in held for index in range(request.n))
        for command in left:
            if isinstance(command, Control):
                command.give_up(dead)
        now = self._clock.now()
        updates = [
            SequenceUpdate(request_id, index, finish_reason=FinishReason.ERROR, error=dead, time=now)
            for request_id, index in waiting
        ]
        try:
            if updates:
                self._sink(updates)
        except Exception:
            log.exception("the sink raised while it was told that the engine has stopped: %s", dead)
