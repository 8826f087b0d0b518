"""The backend in a process of its own, as the process that serves sees it.

    commands   one message a request   ->   ipc socket   ->   engine.process   ->   loop, scheduler, executor
    events     one message a step      <-   ipc socket   <-

A third pair of sockets carries nothing: it ends for one side when the other is gone, whatever ended it.
Everything here runs in one thread: that of the asyncio loop, once ``connect`` has been called.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import shutil
import signal
import subprocess
from concurrent.futures import Future
from typing import Any

import zmq

from headrace.core.clock import Clock
from headrace.core.errors import EngineDeadError
from headrace.core.outputs import EngineHealth
from headrace.core.plan import FinishReason
from headrace.core.request import Request

from . import wire
from .backend import Deliver, Fail, StartReport
from .spawn import EngineProcess

log = logging.getLogger("headrace")

_MAX_BEAT = 0.25
_MESSAGES_A_TURN = 16
"""Steps that are taken in before the event loop gets on with other things."""
_WATCHED_EVERY = 1.0
_END_LIMIT = 1.0


class RemoteBackend:
    """``Backend`` over a process that is told what to ``build`` and asked for its ``report`` before anything else."""

    def __init__(self, started: EngineProcess, clock: Clock) -> None:
        self._process = started.process
        self._folder = started.folder
        self._life = started.life
        self._clock = clock
        self._context = zmq.Context()
        self._commands = self._context.socket(zmq.PAIR)
        self._events = self._context.socket(zmq.PAIR)
        try:
            wire.meet(self._commands, self._folder, wire.COMMANDS, is_sender=True)
            wire.meet(self._events, self._folder, wire.EVENTS, is_sender=False)
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self._numbers = itertools.count(1)
        self._replies: dict[int, Future[Any]] = {}
        self._deliver: Deliver = lambda updates: None
        self._fail: Fail = lambda error: None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._dead: EngineDeadError | None = None
        self._is_idle = True
        self._heartbeat = self._asked = clock.now()
        self._closed = False

    @classmethod
    def build(
        cls, started: EngineProcess, settings: dict[str, Any], clock: Clock, heartbeat_limit: float
    ) -> RemoteBackend:
        """Tells the process to build what ``settings`` say; it is the backend's from here on. ``heartbeat_limit``: the
        age in seconds, at which its heartbeat will be found too old. Raises ``ConfigError`` if there is no place for
        the sockets."""
        try:
            backend = cls(started, clock)
        except BaseException:
            started.discard()
            raise
        beat = min(_MAX_BEAT, heartbeat_limit / 4)
        backend._send(wire.Build(settings, log.getEffectiveLevel(), beat, started.started))
        return backend

    @property
    def pid(self) -> int:
        return self._process.pid

    # The start, before there is an event loop.

    def report(self) -> StartReport:
        """Waits until the engine is built, and shows its log meanwhile. Raises what building raised, or
        ``EngineDeadError`` if the process has ended instead."""
        # Having failed it waits for this side to read why, so there is nothing left to read when the line is down.
        poller = zmq.Poller()
        poller.register(self._events, zmq.POLLIN)
        poller.register(self._life.fileno(), zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            while (data := self._receive()) is not None:
                event = wire.decode_event(data)
                # The first is an answer, so both sockets are connected and their names are needed no more. Whatever
                # ends this process from here on leaves no folder behind.
                shutil.rmtree(self._folder, ignore_errors=True)
                if isinstance(event, wire.Ready):
                    return event.report
                if isinstance(event, wire.Failed):
                    raise wire.error_of(event.fault)
                self._take(event)
            if self._life.fileno() in ready:
                raise EngineDeadError(f"{self._how_it_ended()} while it was starting")

    # The life, in the event loop.

    def start(self, deliver: Deliver, fail: Fail) -> None:
        self._deliver, self._fail = deliver, fail

    def connect(self, loop: asyncio.AbstractEventLoop) -> None:
        """Takes in events from now on, in ``loop``."""
        self._loop = loop
        self._heartbeat = self._asked = self._clock.now()
        loop.add_reader(self._events.getsockopt(zmq.FD), self._readable)
        loop.add_reader(self._life, self._ended)
        # What has arrived before is not announced.
        loop.call_soon(self._readable)

    def submit(self, request: Request) -> None:
        self._check_alive()
        self._send(wire.Submit(request))

    def cancel(self, request_id: int) -> None:
        self._check_alive()
        self._send(wire.Cancel(request_id))

    def finish(self, request_id: int, index: int, reason: FinishReason) -> None:
        self._send(wire.Finish(request_id, index, reason))

    def call(self, name: str, *args: str) -> Future[Any]:
        self._check_alive()
        number = next(self._numbers)
        future = self._replies[number] = Future()
        self._send(wire.Call(number, name, args))
        return future

    def health(self) -> EngineHealth:
        now = self._clock.now()
        if now - self._asked > _WATCHED_EVERY:
            # It was this process that stood still (a laptop asleep, a shell's Ctrl-Z): the other may speak first.
            self._heartbeat = now
        self._asked = now
        return EngineHealth(dead=self._dead, is_idle=self._is_idle, heartbeat=self._heartbeat)

    def kill(self, error: EngineDeadError) -> None:
        self._process.kill()
        self._die(error)

    def shutdown(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._stop_reading()
        self._dead = self._dead or EngineDeadError("the engine has been shut down")
        # The process ends by itself when it finds the life line down. One that cannot is ended.
        self._life.close()
        try:
            self._process.wait(_END_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._context.destroy(linger=0)
        shutil.rmtree(self._folder, ignore_errors=True)

    # Taking in.

    def _readable(self) -> None:
        # The descriptor announces that something has changed, not that there is something: all must be read.
        for _ in range(_MESSAGES_A_TURN):
            data = self._receive()
            if data is None:
                return
            self._take(wire.decode_event(data))
        if self._loop is not None:
            self._loop.call_soon(self._readable)

    def _receive(self) -> bytes | None:
        if self._events.closed:
            return None
        try:
            return self._events.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def _take(self, event: wire.Event) -> None:
        match event:
            case wire.News():
                self._is_idle = False
                self._deliver(event.updates)
            case wire.Beat():
                self._is_idle, self._heartbeat = event.is_idle, event.heartbeat
            case wire.Reply():
                future = self._replies.pop(event.number)
                if event.fault is not None:
                    future.set_exception(wire.error_of(event.fault))
                else:
                    future.set_result(event.value)
            case wire.Log():
                log.log(event.level, "%s", event.text)
            case wire.Dead():
                self._die(EngineDeadError(event.text))
            case _:
                raise EngineDeadError(f"the engine process said {type(event).__name__} out of turn")

    def _ended(self) -> None:
        """The life line is down. What the process said before is read first: it may be the reason."""
        self._readable()
        self._die(EngineDeadError(self._how_it_ended()))

    def _die(self, error: EngineDeadError) -> None:
        if self._dead is not None:
            return
        self._dead = error
        self._stop_reading()
        for future in self._replies.values():
            future.set_exception(error)
        self._replies.clear()
        self._fail(error)

    def _stop_reading(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._events.getsockopt(zmq.FD))
            self._loop.remove_reader(self._life)
        self._loop = None

    def _how_it_ended(self) -> str:
        try:
            status = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "the engine process has closed its connection"
        if status < 0:
            return f"the engine process was ended by {signal.Signals(-status).name}"
        return f"the engine process has ended with status {status}"

    def _send(self, command: wire.Command) -> None:
        self._commands.send(wire.encode(command))

    def _check_alive(self) -> None:
        if self._dead is not None:
            raise EngineDeadError(str(self._dead)) from self._dead
