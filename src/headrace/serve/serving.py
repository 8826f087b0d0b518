"""What all handlers share while the server runs."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastapi import Request

from .engine import ServedEngine
from .errors import ApiError
from .metrics import Metrics
from .options import ServeOptions
from .perf import PerfRecords

if TYPE_CHECKING:
    from .job import Job


@dataclass(slots=True)
class Serving:
    """One for each server; lives on ``app.state.serving``."""

    engine: ServedEngine
    options: ServeOptions
    metrics: Metrics = field(default_factory=Metrics)
    perf: PerfRecords = field(init=False)
    wall_time: Callable[[], float] = time.time
    """Seconds since 1970, for the ``created`` fields."""
    new_id: Callable[[], str] = lambda: secrets.token_hex(12)
    draining: bool = False
    """Set once, by SIGTERM: nothing new is taken."""
    jobs: set[Job] = field(default_factory=set)
    """Requests under way."""
    started: int = 0
    """Seconds since 1970."""

    def __post_init__(self) -> None:
        self.started = self.created
        self.perf = PerfRecords(self.options.perf_metrics_max_requests)

    @property
    def created(self) -> int:
        return int(self.wall_time())

    def check_model(self, name: str | None) -> str:
        """The name to answer with. Raises ``ApiError`` for a model that is not served here."""
        served = self.options.model_name
        if name not in (None, served):
            message = f"there is no model {name!r} here; this server has {served!r}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return served


def serving_of(request: Request) -> Serving:
    """For ``Depends``."""
    return request.app.state.serving
