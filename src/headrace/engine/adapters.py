"""Which adapters are loaded: read beside the loop, put into the worker between two steps, given up when idle.

A request with an adapter is held by the loop until its adapter is there. An adapter that a request named goes when
another wants its place and nobody uses it; one that was loaded by name stays until it is unloaded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from headrace.core.clock import Clock
from headrace.core.errors import EngineDeadError, ModelError, RequestError
from headrace.core.lora import LoRARequest, PlacedAdapter
from headrace.core.outputs import SequenceUpdate
from headrace.core.plan import FinishReason
from headrace.core.request import Request
from headrace.executor.base import Executor

from .loop import EngineLoop

log = logging.getLogger("headrace")

GoOn = Callable[[Request], None]
"""Takes on a held request whose adapter is there."""


class AdapterLoading(Protocol):
    """What a backend asks of adapters."""

    def submit(self, request: Request, loop: EngineLoop, go_on: GoOn) -> None:
        """Takes in a request with ``lora`` and returns at once. Raises what ``loop.hold`` raises, and ``RequestError``
        for an adapter that cannot be."""
        ...

    def observe(self, updates: Iterable[SequenceUpdate]) -> None:
        """News of a step, before anybody else gets them."""
        ...

    def load(self, name: str, path: str) -> Future[None]:
        """Loads an adapter that stays. Raises ``RequestError``, or fails with it."""
        ...

    def unload(self, name: str) -> Future[None]:
        """No new request gets it; its memory is given back when those under way have ended. Raises
        ``RequestError`` if there is none of that name."""
        ...

    def describe(self) -> list[dict[str, Any]]:
        """Name, id, path and users of those that are loaded."""
        ...

    def close(self) -> None: ...


class NoAdapterLoading:
    """Of an engine without adapters."""

    def submit(self, request: Request, loop: EngineLoop, go_on: GoOn) -> None:
        raise _turned_off()

    def observe(self, updates: Iterable[SequenceUpdate]) -> None:
        pass

    def load(self, name: str, path: str) -> Future[None]:
        raise _turned_off()

    def unload(self, name: str) -> Future[None]:
        raise _turned_off()

    def describe(self) -> list[dict[str, Any]]:
        return []

    def close(self) -> None:
        pass


def _turned_off() -> RequestError:
    return RequestError(
        "lora_request: this engine was started without adapters; start it with enable_lora=True", param="lora_request"
    )


NO_ADAPTER_LOADING = NoAdapterLoading()

_OWN_IDS = 1 << 40
"""Adapters that are loaded by name get ids above this."""


@dataclass(slots=True, eq=False)
class _Adapter:
    """One that is loaded, or about to be."""

    asked: LoRARequest
    stays: bool
    placed: PlacedAdapter | None = None
    """None: it is being loaded, or waits for a place."""
    users: set[int] = field(default_factory=set)
    """Requests under way."""
    waiting: list[_Waiting] = field(default_factory=list)
    told: list[Future[None]] = field(default_factory=list)
    last_use: int = 0
    leaving: bool = False


@dataclass(slots=True, eq=False)
class _Waiting:
    request: Request
    loop: EngineLoop
    go_on: GoOn


class WorkerAdapters:
    """``AdapterLoading`` over an executor: ``n_places`` adapters at once.

    Everything here is guarded by one lock, which nobody holds while files are read or the worker is asked.
    """

    def __init__(self, executor: Executor, n_places: int, clock: Clock, read: Callable[[Path], Any]) -> None:
        """``read``: a folder to what the worker's ``load_adapter`` takes; its ``content`` is a hash of the files."""
        self._executor = executor
        self._read = read
        self._clock = clock
        self._n_places = n_places
        self._free = list(reversed(range(n_places)))
        self._by_id: dict[int, _Adapter] = {}
        self._leaving: set[_Adapter] = set()
        self._open: dict[int, tuple[set[int], _Adapter]] = {}
        """By request: which of its outputs have not ended, and its adapter."""
        self._lock = threading.RLock()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._uses = 0
        self._n_emptying = 0
        self._own_id = _OWN_IDS

    # From any thread.

    def submit(self, request: Request, loop: EngineLoop, go_on: GoOn) -> None:
        assert request.lora is not None
        with self._lock:
            adapter = self._find(request.lora)
            loop.hold(request)
            if adapter is None:
                adapter = self._by_id[request.lora.lora_int_id] = _Adapter(request.lora, stays=False)
            adapter.users.add(request.request_id)
            self._open[request.request_id] = (set(range(request.n)), adapter)
            waiting = _Waiting(request, loop, go_on)
            if adapter.placed is not None:
                self._send_on(adapter, waiting)
                return
            adapter.waiting.append(waiting)
        self._watch_deadline(request, loop)
        self._enqueue(self._load_what_waits)

    def observe(self, updates: Iterable[SequenceUpdate]) -> None:
        ended = [update for update in updates if update.finish_reason is not None]
        if not ended:
            return
        with self._lock:
            for update in ended:
                self._end(update)

    def load(self, name: str, path: str) -> Future[None]:
        done: Future[None] = Future()
        with self._lock:
            if self._named(name) is not None:
                raise RequestError(f"adapter {name!r} is loaded already; unload it first", param="lora_name")
            if self._all_stay():
                raise self._no_place(name)
            self._own_id += 1
            adapter = self._by_id[self._own_id] = _Adapter(LoRARequest(name, self._own_id, path), stays=True)
            adapter.told.append(done)
        self._enqueue(self._load_what_waits)
        return done

    def unload(self, name: str) -> Future[None]:
        done: Future[None] = Future()
        with self._lock:
            adapter = self._named(name)
            if adapter is None:
                there = ", ".join(repr(one.asked.lora_name) for one in self._by_id.values()) or "none"
                raise RequestError(f"no adapter {name!r} is loaded; there are: {there}", param="lora_name")
            self._leave(adapter)
        done.set_result(None)
        return done

    def describe(self) -> list[dict[str, Any]]:
        with self._lock:
            return [
                {
                    "lora_name": one.asked.lora_name,
                    "lora_int_id": one.asked.lora_int_id,
                    "lora_path": one.asked.lora_path,
                    "requests": len(one.users),
                    "loaded": one.placed is not None,
                }
                for one in (*self._by_id.values(), *self._leaving)
            ]

    def close(self) -> None:
        """Ends the thread when it has done what it is at."""
        with self._lock:
            waiting = [future for adapter in self._by_id.values() for future in adapter.told]
        for future in waiting:
            if not future.done():
                future.set_exception(EngineDeadError("the engine has been shut down"))
        if self._thread is not None:
            self._jobs.put(None)

    # Under the lock.

    def _named(self, name: str) -> _Adapter | None:
        return next((one for one in self._by_id.values() if one.asked.lora_name == name), None)

    def _find(self, asked: LoRARequest) -> _Adapter | None:
        """The adapter that is asked for; None: it is to be loaded. Raises ``RequestError``."""
        if not asked.lora_path:
            adapter = self._named(asked.lora_name)
            if adapter is None:
                message = f"adapter {asked.lora_name!r} is not loaded; give its folder as lora_path"
                raise RequestError(message, param="lora_request")
            return adapter
        adapter = self._by_id.get(asked.lora_int_id)
        if adapter is None:
            if self._all_stay():
                raise self._no_place(asked.lora_name)
            return None
        if (adapter.asked.lora_name, adapter.asked.lora_path) != (asked.lora_name, asked.lora_path):
            raise RequestError(
                f"lora_int_id={asked.lora_int_id} is {adapter.asked.lora_name!r} of {adapter.asked.lora_path}; give"
                f" {asked.lora_name!r} another id, or unload that one first",
                param="lora_request",
            )
        return adapter

    def _all_stay(self) -> bool:
        return sum(one.stays for one in self._by_id.values()) >= self._n_places

    def _no_place(self, name: str) -> RequestError:
        return RequestError(
            f"adapter {name!r} finds no place: {self._n_places} that were loaded by name stay (LoraConfig.max_loras);"
            " unload one, or raise it",
            param="lora_request",
        )

    def _send_on(self, adapter: _Adapter, waiting: _Waiting) -> None:
        self._uses += 1
        adapter.last_use = self._uses
        waiting.go_on(dataclasses.replace(waiting.request, adapter=adapter.placed))

    def _end(self, update: SequenceUpdate) -> None:
        left, adapter = self._open.get(update.request_id, (None, None))
        if left is None or adapter is None:
            return
        left.discard(update.index)
        if left:
            return
        del self._open[update.request_id]
        adapter.users.discard(update.request_id)
        adapter.waiting = [one for one in adapter.waiting if one.request.request_id != update.request_id]
        if adapter.users:
            return
        if adapter.leaving:
            # One that could not be loaded has no place.
            if adapter.placed is not None:
                self._give_back(adapter)
        elif any(one.placed is None for one in self._by_id.values()):
            self._enqueue(self._load_what_waits)

    def _leave(self, adapter: _Adapter) -> None:
        del self._by_id[adapter.asked.lora_int_id]
        adapter.leaving = True
        error = RequestError(f"adapter {adapter.asked.lora_name!r} was unloaded", param="lora_request")
        self._fail(adapter, error)
        if adapter.placed is None:
            return
        self._leaving.add(adapter)
        if not adapter.users:
            self._give_back(adapter)

    def _fail(self, adapter: _Adapter, error: Exception) -> None:
        """Ends those that wait for it."""
        for waiting in adapter.waiting:
            # If the loop has ended, it has told them.
            with contextlib.suppress(EngineDeadError):
                waiting.loop.refuse(waiting.request.request_id, FinishReason.ERROR, error)
        adapter.waiting = []
        for future in adapter.told:
            future.set_exception(error)
        adapter.told = []

    def _give_back(self, adapter: _Adapter) -> None:
        self._leaving.discard(adapter)
        assert adapter.placed is not None
        number, adapter.placed = adapter.placed.number, None
        self._n_emptying += 1
        self._enqueue(lambda: self._empty(number))

    def _place(self) -> int | None:
        """A free place; None: somebody is about to leave one, or nobody can."""
        if self._free:
            return self._free.pop()
        if self._n_emptying:
            return None
        idle = [one for one in self._by_id.values() if one.placed is not None and not one.users and not one.stays]
        if idle:
            victim = min(idle, key=lambda one: one.last_use)
            del self._by_id[victim.asked.lora_int_id]
            self._give_back(victim)
        return None

    # In the thread of this.

    def _enqueue(self, job: Callable[[], None]) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="headrace-adapters", daemon=True)
                self._thread.start()
        self._jobs.put(job)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except EngineDeadError:
                pass  # whoever waited has been told by the loop
            except Exception:
                log.exception("loading adapters has failed")

    def _empty(self, number: int) -> None:
        self._executor.call("unload_adapter", number)
        with self._lock:
            self._free.append(number)
            self._n_emptying -= 1
        self._load_what_waits()

    def _load_what_waits(self) -> None:
        """Loads one after another, as long as there are places."""
        while True:
            with self._lock:
                # In the order in which they were first asked for.
                adapter = next((one for one in self._by_id.values() if one.placed is None), None)
                number = None if adapter is None else self._place()
                if adapter is not None and number is None and not adapter.stays and self._all_stay():
                    self._give_up(adapter, self._no_place(adapter.asked.lora_name))
                    continue
            if adapter is None or number is None:
                return
            self._load(adapter, number)

    def _load(self, adapter: _Adapter, number: int) -> None:
        try:
            read = self._read(Path(adapter.asked.lora_path).expanduser())
            self._executor.call("load_adapter", number, read)
        except Exception as error:
            with self._lock:
                self._free.append(number)
                self._give_up(adapter, _as_request_error(adapter.asked.lora_name, error))
            if not isinstance(error, ModelError | OSError):
                raise
            return
        with self._lock:
            adapter.placed = PlacedAdapter(number, read.content)
            if adapter.leaving:
                self._give_back(adapter)
                return
            for waiting in adapter.waiting:
                self._send_on(adapter, waiting)
            adapter.waiting = []
            for future in adapter.told:
                future.set_result(None)
            adapter.told = []

    def _give_up(self, adapter: _Adapter, error: Exception) -> None:
        """It cannot be loaded."""
        if self._by_id.get(adapter.asked.lora_int_id) is adapter:
            del self._by_id[adapter.asked.lora_int_id]
        adapter.leaving = True
        self._fail(adapter, error)

    def _watch_deadline(self, request: Request, loop: EngineLoop) -> None:
        """A request may not wait for an adapter longer than it has time."""
        if request.deadline is None:
            return
        left = max(0.0, request.deadline - self._clock.now())
        timer = threading.Timer(left, lambda: self._late(request, loop))
        timer.daemon = True
        timer.start()

    def _late(self, request: Request, loop: EngineLoop) -> None:
        with self._lock:
            left, adapter = self._open.get(request.request_id, (None, None))
            waits = adapter is not None and any(one.request is request for one in adapter.waiting)
        if left is not None and waits:
            loop.refuse(request.request_id, FinishReason.TIMEOUT)


def _as_request_error(name: str, error: Exception) -> Exception:
    """What those who wait for an adapter are told."""
    if isinstance(error, OSError):
        error = ModelError(f"{error.filename}: {error.strerror}")
    return RequestError(f"adapter {name!r}: {error}", param="lora_request") if isinstance(error, ModelError) else error
