"""The application: routers, errors and the gate, put together."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.types import ASGIApp

from . import errors
from .document import ERRORS, describe
from .gate import Gate
from .routers import adapters, chat, completions, encode, operations, page, tokens
from .serving import Serving

ROUTERS = (
    operations.router,
    completions.router,
    chat.router,
    encode.router,
    tokens.router,
    adapters.router,
    page.router,
)


def make_app(serving: Serving) -> ASGIApp:
    """The ASGI application over one engine."""
    # No spans: they would cost more than a request to a small model, and where they go is for the operator to say.
    off: TelemetryConfig = {"tracing": False, "metrics": False, "auto_configure": False}
    app = FastAPI(
        title="headrace", version=version("headrace"), redirect_slashes=False, telemetry=off, responses=ERRORS
    )
    app.state.serving = serving
    for router in ROUTERS:
        app.include_router(router)
    errors.install(app)
    describe(app)
    return Gate(app, serving)
