"""A client for answers that come as server-sent events, light enough to stand beside the server that it measures."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httptools

from headrace.core.errors import ConfigError

_READ_BYTES = 1 << 16
_DONE = b"[DONE]"


class HttpFailure(Exception):
    """A request that did not come to a whole answer. ``kind``: a few words to count it under."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Target:
    """Where a server listens."""

    host: str
    port: int
    prefix: str
    """Path before the API's own, without a slash at its end."""
    is_tls: bool
    api_key: str | None = None

    @classmethod
    def of(cls, url: str, api_key: str | None = None) -> Target:
        """``http://host:port`` or ``https://host``, with or without ``/v1`` at the end. Raises ``ConfigError``."""
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = None
            parts = parts._replace(scheme="")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ConfigError(f"{url!r} is no address of a server; write it as http://127.0.0.1:8000")
        is_tls = parts.scheme == "https"
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, port or (443 if is_tls else 80), prefix, is_tls, api_key)

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' * self.is_tls}://{host}:{self.port}{self.prefix}"


class _Answer:
    """What the parser has seen so far."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.is_whole = False

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.is_whole = True


async def events(target: Target, path: str, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The events of a streamed answer, as they arrive, up to ``[DONE]``. A connection of its own for each request.

    Raises ``HttpFailure`` for a status that is not 200, an event that is an error, and a stream that is cut short.
    """
    async with contextlib.aclosing(_parts(target, "POST", path, body)) as parts:
        rest, done = b"", False
        async for status, data in parts:
            if status != 200:
                raise _refusal(status, data)
            *whole, rest = (rest + data).split(b"\n\n")
            for event in whole:
                text = event.strip().removeprefix(b"data:").strip()
                if text == _DONE:
                    done = True
                elif text:
                    yield _parsed(text)
        if not done:
            raise HttpFailure("cut short", "the stream ended without [DONE]")


async def get_json(target: Target, path: str) -> Any:
    """A JSON document. Raises ``HttpFailure``."""
    async with contextlib.aclosing(_parts(target, "GET", path, None)) as parts:
        pieces = [(status, data) async for status, data in parts]
    status, found = pieces[-1][0], b"".join(data for _, data in pieces)
    if status != 200:
        raise _refusal(status, found)
    try:
        return json.loads(found)
    except ValueError:
        raise HttpFailure("not JSON", f"{path} answered {found[:80]!r}") from None


async def _parts(
    target: Target, method: str, path: str, body: Mapping[str, Any] | None
) -> AsyncIterator[tuple[int, bytes]]:
    """(status, new bytes of the body) as they arrive; what a refusal has to say comes in one piece."""
    try:
        reader, writer = await asyncio.open_connection(target.host, target.port, ssl=target.is_tls or None)
    except OSError as error:
        raise HttpFailure("no connection", f"{target.url}: {error}") from None
    answer = _Answer()
    parser = httptools.HttpResponseParser(answer)
    try:
        writer.write(_request(target, method, path, body))
        await writer.drain()
        while not answer.is_whole:
            data = await reader.read(_READ_BYTES)
            if not data:
                raise HttpFailure("cut short", f"{target.url} hung up in the middle of an answer")
            parser.feed_data(data)
            status = parser.get_status_code() if answer.body or answer.is_whole else 0
            if (answer.body and status == 200) or answer.is_whole:
                yield status, bytes(answer.body)
                answer.body.clear()
    except (OSError, httptools.HttpParserError) as error:
        raise HttpFailure("broken connection", f"{target.url}: {error}") from None
    finally:
        writer.close()


def _request(target: Target, method: str, path: str, body: Mapping[str, Any] | None) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {target.prefix}{path} HTTP/1.1", f"Host: {target.host}:{target.port}", "Connection: close"]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    if target.api_key is not None:
        lines.append(f"Authorization: Bearer {target.api_key}")
    return "\r\n".join([*lines, "", ""]).encode() + content


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        event = json.loads(text)
    except ValueError:
        raise HttpFailure("not JSON", f"an event that is no JSON: {text[:80]!r}") from None
    if "error" in event:
        error = event["error"] or {}
        raise HttpFailure(f"error event {error.get('code') or ''}".strip(), str(error.get("message")))
    return event


def _refusal(status: int, data: bytes) -> HttpFailure:
    """Counted by status and, where the body has OpenAI's shape, by code."""
    try:
        error = json.loads(data)["error"]
        code, message = error.get("code"), str(error.get("message"))
    except (ValueError, KeyError, TypeError, AttributeError):
        code, message = None, data[:200].decode("utf-8", "replace")
    return HttpFailure(f"HTTP {status} {code or ''}".strip(), message)
