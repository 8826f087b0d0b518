"""What the OpenAPI document says beside the request bodies: the errors of every operation."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    """The field to blame."""
    code: str | None


class ErrorAnswer(BaseModel):
    """The body of every error."""

    error: ErrorBody


_REASONS = {
    400: "The request is wrong; `param` names the field.",
    401: "The key is missing or wrong.",
    404: "There is no such model or path.",
    413: "The body is too large.",
    415: "The body is no JSON, by its content type or its encoding.",
    429: "Too many requests wait; Retry-After says when to come again.",
    500: "A fault of the server.",
    503: "The engine cannot serve, or the server is about to end.",
}

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": reason} for status, reason in _REASONS.items()
}
"""For ``FastAPI(responses=...)``."""

STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
"""For operations that answer in events when they are asked to."""


def describe(app: FastAPI) -> None:
    """Takes out what the framework writes of itself: wrong fields are answered with 400 here, not with 422."""
    whole = app.openapi

    def document() -> dict[str, Any]:
        found = whole()
        for path in found["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            found["components"]["schemas"].pop(name, None)
        return found

    app.openapi = document  # type: ignore[method-assign]
