"""Errors as OpenAI's clients expect them: a status, and ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException

from headrace.core.errors import EngineError, PromptTooLongError, QueueFullError, RequestError

log = logging.getLogger("headrace")

CLIENT_GONE = 499
"""Nobody reads it; the number is nginx's."""
RETRY_AFTER = "1"
"""Seconds. A queue moves with every request that ends."""
_MAX_MESSAGE = 2000

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(HTTPException):
    """A refusal with its HTTP status. ``param`` names the field to blame."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.param = param
        self.code = code

    def body(self) -> bytes:
        # What a client sent may be quoted in it: of any length, and not always valid Unicode.
        message = str(self.detail)[:_MAX_MESSAGE].encode("utf-8", "replace").decode()
        param = None if self.param is None else self.param[:200].encode("utf-8", "replace").decode()
        kind = _TYPES.get(self.status_code, "server_error" if self.status_code >= 500 else "invalid_request_error")
        error = {"message": message, "type": kind, "param": param, "code": self.code}
        return msgspec.json.encode({"error": error})

    def response(self) -> Response:
        return Response(self.body(), self.status_code, self.headers, media_type="application/json")


# Where the API's name for a field is not the engine's.
_API_NAMES = {"embedding_bias": "logit_bias", "timeout": None, "inputs": "prompt"}


def as_api_error(error: Exception) -> ApiError:
    """The refusal that stands for an error of the engine or of a request; anything else is the server's own fault."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), code="queue_full", headers={"Retry-After": RETRY_AFTER})
    if isinstance(error, RequestError):
        code = "context_length_exceeded" if isinstance(error, PromptTooLongError) else None
        param = error.param
        return ApiError(400, str(error), param=_API_NAMES.get(param, param) if param else None, code=code)
    if isinstance(error, EngineError | TimeoutError):
        return ApiError(503, str(error) or "the engine did not answer in time", code="engine_unavailable")
    log.error("a request failed: %s", error, exc_info=error)
    return ApiError(500, f"{type(error).__name__} in the server; its log has the details", code="internal_error")


_SHOWN = reprlib.Repr()
"""What was given may have megabytes."""
_SHOWN.maxstring = _SHOWN.maxother = 100


UNION_TAG = "~"
"""Begins the names of the members of a union, which are no fields of a body."""


def of_validation(problems: list[Any]) -> ApiError:
    """The first problem that pydantic found in a body."""
    first = problems[0]
    path = [name for name in map(str, first["loc"][1:]) if not name.startswith(UNION_TAG)]
    name = first.get("ctx", {}).get("param")
    # A refusal of a whole object names the field in it; one of the field itself stands there already.
    param = ".".join(path if name is None or path[-1:] == [name] else [*path, name])
    text = first["msg"].removeprefix("Value error, ")
    if first["type"] == "refused_field":
        return ApiError(400, text, param=param)
    if not param:
        what = "missing" if first["type"] == "missing" else "not a JSON object"
        return ApiError(400, f"the body is {what}; send an object with the request's fields")
    given = "" if first["type"] == "missing" else f" (given: {_SHOWN.repr(first['input'])})"
    return ApiError(400, f"{param}: {text}{given}", param=param)


def _of_routing(request: Request, error: StarletteHTTPException) -> ApiError:
    """What the framework refuses before a handler is found."""
    # Not request.url: a Host header that is no host would make that fail.
    headers, path = dict(error.headers or {}), request.scope["path"]
    text = str(error.detail)
    if error.status_code == 404:
        text = f"there is nothing at {path!r:.200}; /openapi.json lists what is here"
    elif error.status_code == 405:
        text = f"{path!r:.200} does not take {request.method}; it takes {headers.get('Allow', 'nothing')}"
    return ApiError(error.status_code, text, headers=headers)


def install(app: FastAPI) -> None:
    """Every error leaves the server in the one shape."""

    async def refused(request: Request, error: Exception) -> Response:
        if isinstance(error, RequestValidationError):
            return of_validation(list(error.errors())).response()
        if isinstance(error, StarletteHTTPException) and not isinstance(error, ApiError):
            return _of_routing(request, error).response()
        return as_api_error(error).response()

    for kind in (RequestValidationError, StarletteHTTPException, RequestError, EngineError, TimeoutError, Exception):
        app.add_exception_handler(kind, refused)
