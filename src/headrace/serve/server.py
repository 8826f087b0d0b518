"""The server's life: it listens, watches the engine, and ends.

SIGTERM, SIGINT   nothing new is taken (503); what runs may finish, up to a limit, then it is cancelled; status 0
engine dead       every request has failed by then, /health says 503; status 1, within a second; so too if it is stuck
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import uvicorn

from .app import make_app
from .serving import Serving

log = logging.getLogger("headrace")

_TICK = 0.1
_LAST_WORDS = 0.2
"""Seconds for the answers that say why."""


class _Uvicorn(uvicorn.Server):
    """Leaves signals to ``Server``: uvicorn would close the door at once, and end by the signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Server:
    """Serves until it is told to stop, or the engine is dead."""

    def __init__(self, serving: Serving) -> None:
        """Listens from here on; connections wait until ``run``. Raises ``OSError`` if the address cannot be had."""
        self._serving = serving
        options = serving.options
        self._socket = socket.create_server((options.host, options.port), family=_family(options.host), backlog=2048)
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                make_app(serving),
                loop="uvloop",
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=2,
            )
        )

    @property
    def port(self) -> int:
        return self._socket.getsockname()[1]

    @property
    def url(self) -> str:
        host = self._serving.options.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def run(self, on_ready: Callable[[], None] = lambda: None) -> int:
        """Blocks; the exit status. ``on_ready`` is called when requests are answered."""
        with asyncio.Runner(loop_factory=self._uvicorn.config.get_loop_factory()) as runner:
            return runner.run(self._serve(on_ready))

    def stop(self) -> None:
        """As SIGTERM, from any thread."""
        if self._loop is not None and self._stop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)

    async def _serve(self, on_ready: Callable[[], None]) -> int:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._serving.engine.connect(self._loop)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(number, self._stop.set)
        serving = asyncio.ensure_future(self._uvicorn.serve(sockets=[self._socket]))
        while not self._uvicorn.started and not serving.done():
            await asyncio.sleep(0.005)
        on_ready()
        status = await self._watch(serving)
        self._uvicorn.should_exit = True
        await serving
        return status

    async def _watch(self, serving: asyncio.Future[None]) -> int:
        """Returns the exit status when it is time to end."""
        assert self._stop is not None
        engine = self._serving.engine
        while not self._stop.is_set() and not serving.done():
            problem = engine.problem()
            if problem is not None:
                return await self._give_up(problem)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _TICK)
        return await self._drain()

    async def _give_up(self, problem: str) -> int:
        log.error("the server ends, since the engine has: %s", problem)
        await asyncio.sleep(_LAST_WORDS)
        # Whoever has not read it by now is not waited for.
        self._uvicorn.force_exit = True
        return 1

    async def _drain(self) -> int:
        serving, loop = self._serving, asyncio.get_running_loop()
        assert self._stop is not None
        self._stop.clear()
        serving.draining = True
        limit = loop.time() + serving.options.drain_limit
        while serving.jobs and loop.time() < limit and not self._stop.is_set():
            problem = serving.engine.problem()
            if problem is not None:
                return await self._give_up(problem)
            await asyncio.sleep(_TICK / 2)
        if serving.jobs:
            log.warning("%d requests are cancelled", len(serving.jobs))
        for job in tuple(serving.jobs):
            job.cancel()
        return 0


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
