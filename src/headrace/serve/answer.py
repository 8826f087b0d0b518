"""Answers that take long: whole or as server-sent events, cancelled as soon as the client is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .errors import CLIENT_GONE, as_api_error

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"


class ClientGone(Exception):
    """The client has hung up."""


async def until_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` returns or raises; when the client hangs up it is cancelled, and ``ClientGone`` raised."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        watch.cancel()
        if not task.done():
            task.cancel()
            # Its cleanup is what gives the engine's memory back: it has run when this returns.
            await asyncio.wait((task,))


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Whole(Response):
    """A JSON body that is made while the client waits."""

    media_type = "application/json"

    def __init__(self, make: Callable[[], Coroutine[Any, Any, bytes]]) -> None:
        super().__init__()
        self._make = make

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await until_gone(receive, self._make())
        except ClientGone:
            await Response(status_code=CLIENT_GONE)(scope, receive, send)
            return
        await Response(body, media_type=self.media_type)(scope, receive, send)


class Events(Response):
    """Server-sent events out of chunks of bytes.

    The head is sent with the first chunk: what is refused until then (a full queue) has its own status. An error after
    it is an event of its own, and the stream ends without ``[DONE]``.
    """

    media_type = "text/event-stream"

    def __init__(self, chunks: Callable[[], AsyncIterator[bytes]]) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_gone(receive, self._send_all(send))
        except ClientGone:
            return

    async def _send_all(self, send: Send) -> None:
        chunks = self._chunks()
        started = False
        try:
            async for chunk in chunks:
                if not started:
                    started = True
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await _send(send, chunk, more=True)
        except Exception as error:
            if not started:
                raise
            await _send(send, b"data: " + as_api_error(error).body() + b"\n\n", more=False)
        else:
            await _send(send, DONE, more=False)
        finally:
            await chunks.aclose()  # type: ignore[attr-defined]


def _send(send: Send, body: bytes, *, more: bool) -> Awaitable[None]:
    return send({"type": "http.response.body", "body": body, "more_body": more})
