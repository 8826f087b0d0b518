"""What a request meets first: the key, the end of service, the size of its body. Plain ASGI: it costs next to nothing,
and the handlers' own view of the connection stays as it is."""

from __future__ import annotations

import hmac

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError
from .routers.page import is_page
from .serving import Serving

OPEN_PATHS = frozenset({"/health"})
"""Answered without a key: probes have none."""
READ_ONLY = frozenset({"GET", "HEAD", "OPTIONS"})


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or is_page(path)


class Gate:
    """Around the whole application."""

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        self._app = app
        self._serving = serving
        self._keys = [key.encode() for key in serving.options.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal.response()(scope, receive, send)
            return
        await self._app(scope, _Limited(receive, self._serving.options.max_body_bytes), send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = dict(scope["headers"])
        if self._keys and not _is_open(scope["path"]) and not self._has_key(headers):
            message = "a valid API key is needed: Authorization: Bearer <key>"
            return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        if self._serving.draining and scope["method"] not in READ_ONLY:
            return ApiError(503, "the server is shutting down", code="shutting_down", headers={"Retry-After": "5"})
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._serving.options.max_body_bytes:
            return too_large(self._serving.options.max_body_bytes)
        return None

    def _has_key(self, headers: dict[bytes, bytes]) -> bool:
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        # Each is compared in constant time, whichever is right.
        matches = [hmac.compare_digest(given.strip(), key) for key in self._keys]
        return scheme.lower() == b"bearer" and any(matches)


class _Limited:
    """``receive`` that counts, for bodies that do not say their length."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._seen = 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        if self._seen > self._limit:
            raise too_large(self._limit)
        return message


def too_large(limit: int) -> ApiError:
    return ApiError(
        413, f"the body is larger than {limit} bytes", code="body_too_large", headers={"Connection": "close"}
    )
