"""The server's application without sockets: requests of any bytes, thousands of them in seconds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from mutations import Raw
from serving_rig import NAME, n_tasks

from headrace import LLM, KvCacheConfig
from headrace.core.clock import SystemClock
from headrace.serve.app import make_app
from headrace.serve.engine import FrontedEngine
from headrace.serve.options import ServeOptions
from headrace.serve.serving import Serving


@dataclass(slots=True)
class Answer:
    """What came back. ``status`` 0: nothing."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def kind(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0]


@dataclass
class Application:
    """One engine in this process, and the application over it. Everything in one event loop."""

    llm: LLM
    serving: Serving

    def __post_init__(self) -> None:
        self._app = make_app(self.serving)
        self._n_tasks = 0

    async def start(self) -> None:
        self.serving.engine.connect(asyncio.get_running_loop())
        self._n_tasks = n_tasks(asyncio.get_running_loop())

    async def ask(self, raw: Raw, patience: float | None = None) -> Answer:
        """The whole answer. ``patience``: seconds after which the client hangs up."""
        answer, sent, gone = Answer(), False, asyncio.Event()

        async def receive() -> dict[str, Any]:
            nonlocal sent
            if not sent:
                sent = True
                return {"type": "http.request", "body": raw.body, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                assert answer.status == 0, "a second head"
                answer.status = message["status"]
                answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            else:
                answer.body += message.get("body", b"")

        if patience is not None:
            asyncio.get_running_loop().call_later(patience, gone.set)
        await self._app(_scope(raw), receive, send)
        return answer

    async def post(self, path: str, body: Any) -> Answer:
        return await self.ask(Raw(path, json.dumps(body).encode()))

    async def idle(self) -> None:
        """Nothing runs, waits, or holds a slot, a block or a task."""
        front = self.llm._engine.front
        async with asyncio.timeout(20):
            while self.serving.jobs or front.n_live or not self.llm._engine.health.is_idle or self._has_tasks():
                await asyncio.sleep(0.005)
        await asyncio.wrap_future(self.llm._engine.backend.call("check_idle"))

    def _has_tasks(self) -> bool:
        return n_tasks(asyncio.get_running_loop()) > self._n_tasks


def _scope(raw: Raw) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": raw.method,
        "scheme": "http",
        "path": unquote_to_bytes(raw.path).decode("utf-8", "replace"),
        "raw_path": raw.path.encode(),
        "query_string": raw.query,
        "root_path": "",
        "headers": raw.headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }


@asynccontextmanager
async def application(folder: Path, **engine: Any) -> AsyncIterator[Application]:
    settings = {"load_format": "dummy", "num_threads": 1, "kv_cache_config": KvCacheConfig(max_tokens=16384), **engine}
    with LLM(folder, **settings) as llm:
        options = ServeOptions(model_name=NAME, port=0)
        app = Application(llm, Serving(FrontedEngine(llm._engine, llm.args, SystemClock(), 60.0), options))
        await app.start()
        yield app
        await app.idle()
