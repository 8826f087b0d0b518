"""The engine's process: builds a backend, hands it what the serving process asks, and sends back what it says.

The main thread takes commands in and reports the heartbeat; the loop and the worker have their own. No signal but
SIGKILL ends it: the parent decides when, by letting go of the life line, and if the parent is gone so is this.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import zmq

from headrace.core.clock import Clock, SystemClock
from headrace.core.errors import ConfigError, EngineDeadError, HeadraceError, RequestError
from headrace.core.outputs import SequenceUpdate
from headrace.core.phases import Phases
from headrace.core.plan import FinishReason
from headrace.core.request import Request
from headrace.runner import openmp  # noqa: F401  before torch

from . import wire
from .backend import StartReport
from .local import LocalBackend

Builder = Callable[[dict[str, Any], Phases], tuple[LocalBackend, StartReport]]
"""Makes a backend that has not been started out of the settings of ``wire.Build``."""

_PR_SET_PDEATHSIG = 1
_LAST_WORDS = 5.0
"""Seconds that the parent has to read why."""


def main(build: Builder, prepare: Callable[[], None] = lambda: None) -> None:
    """The whole life of the process. The last two arguments of the command line are the folder of the sockets and the
    number of the life line. ``prepare``: is called before anybody has said what to build."""
    folder, number = Path(sys.argv[-2]), int(sys.argv[-1])
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    os.set_inheritable(number, False)
    _end_with_parent()
    life = socket.socket(fileno=number)
    status = 1
    try:
        status = _Process(folder, life, SystemClock()).run(build, prepare)
    except Exception:  # noqa: BLE001  a fault of this file: stderr is all there is to tell
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    # Without waiting for anybody's threads: one may be in the middle of a step.
    os._exit(status)


def _end_with_parent() -> None:
    """The kernel ends this process with the thread that started it: also when it is stopped, or holds the GIL."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class _Process:
    """The connection, and what goes over it."""

    def __init__(self, folder: Path, life: socket.socket, clock: Clock) -> None:
        self._life = life
        self._clock = clock
        context = zmq.Context()
        self._commands = context.socket(zmq.PAIR)
        self._events = context.socket(zmq.PAIR)
        wire.meet(self._commands, folder, wire.COMMANDS, is_sender=False)
        wire.meet(self._events, folder, wire.EVENTS, is_sender=True)
        self._sending = threading.Lock()
        self._poller = zmq.Poller()
        self._poller.register(self._commands, zmq.POLLIN)
        self._poller.register(life.fileno(), zmq.POLLIN)

    def run(self, build: Builder, prepare: Callable[[], None]) -> int:
        """Returns the exit status when the parent has gone or the engine cannot go on."""
        begun = self._clock.now()
        prepare()
        prepared = self._clock.now()
        first = self._next(None)
        if not isinstance(first, wire.Build):
            return 0
        logging.getLogger("headrace").addHandler(_Forward(self._send))
        logging.getLogger("headrace").setLevel(first.log_level)
        self._send(wire.Beat(self._clock.now(), True))
        phases = Phases(self._clock)
        phases.add("start engine process", begun - first.spawned)
        phases.add("import torch", prepared - begun)
        try:
            backend, report = build(first.settings, phases)
        except Exception as error:  # noqa: BLE001  the parent raises it
            trace = "" if isinstance(error, HeadraceError) else traceback.format_exc()
            self._send(wire.Failed(wire.fault_of(error, trace)))
            return self._await_parent()
        # What has been built stays: the collector need not look at it, now or ever.
        gc.freeze()
        gc.enable()
        backend.start(self._deliver, lambda error: None, lambda error: self._send(wire.Dead(str(error))))
        self._send(wire.Ready(report))
        return self._serve(backend, first.beat)

    def _serve(self, backend: LocalBackend, beat: float) -> int:
        due = self._clock.now()
        while True:
            now = self._clock.now()
            if now >= due:
                health = backend.health()
                if health.dead is not None:
                    return self._await_parent()
                self._send(wire.Beat(health.heartbeat, health.is_idle))
                due = now + beat
            command = self._next(due - now)
            if isinstance(command, _Gone):
                return 0
            if command is not None:
                self._obey(backend, command)

    def _obey(self, backend: LocalBackend, command: wire.Command) -> None:
        # If the loop has just ended the parent has been told why, and tells everybody who waits.
        with contextlib.suppress(EngineDeadError):
            match command:
                case wire.Submit():
                    self._submit(backend, command.request)
                case wire.Cancel():
                    backend.cancel(command.request_id)
                case wire.Finish():
                    backend.finish(command.request_id, command.index, command.reason)
                case wire.Call():
                    self._call(backend, command)

    def _submit(self, backend: LocalBackend, request: Request) -> None:
        try:
            backend.submit(request)
        except RequestError as error:
            now = self._clock.now()
            self._deliver(
                [
                    SequenceUpdate(request.request_id, index, finish_reason=FinishReason.ERROR, error=error, time=now)
                    for index in range(request.n)
                ]
            )

    def _call(self, backend: LocalBackend, command: wire.Call) -> None:
        def answer(done: Future[Any]) -> None:
            error = done.exception()
            fault = None if error is None else wire.fault_of(error)
            self._send(wire.Reply(command.number, None if error else done.result(), fault))

        try:
            backend.call(command.name, *command.args).add_done_callback(answer)
        except (ConfigError, RequestError) as error:
            self._send(wire.Reply(command.number, None, wire.fault_of(error)))

    def _deliver(self, updates: list[SequenceUpdate]) -> None:
        self._send(wire.News(updates))

    def _send(self, event: wire.Event) -> None:
        data = wire.encode(event)
        with self._sending:
            self._events.send(data)

    def _next(self, seconds: float | None) -> wire.Command | _Gone | None:
        """The next command; None if there is none for so long."""
        milliseconds = None if seconds is None else max(0.0, seconds) * 1e3
        ready = dict(self._poller.poll(milliseconds))
        if self._life.fileno() in ready:
            return _Gone()
        if self._commands not in ready:
            return None
        return wire.decode_command(self._commands.recv())

    def _await_parent(self) -> int:
        """What was said last is read by the time the parent lets go."""
        self._life.settimeout(_LAST_WORDS)
        with contextlib.suppress(TimeoutError):
            self._life.recv(1)
        return 1


class _Gone:
    """The parent has let go."""


class _Forward(logging.Handler):
    """The log, shown by the parent."""

    def __init__(self, send: Callable[[wire.Event], None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        self._send(wire.Log(record.levelno, self.format(record)))
