"""What all handlers share while the server runs."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastapi import Request

from headrace.core.lora import LoRARequest

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
    adapters: dict[str, int] = field(default_factory=dict)
    """Adapters that requests may name as their model, and since when: seconds since 1970."""
    started: int = 0
    """Seconds since 1970."""

    def __post_init__(self) -> None:
        self.started = self.created
        self.adapters |= dict.fromkeys(self.engine.first_adapters, self.started)
        self.perf = PerfRecords(self.options.perf_metrics_max_requests)

    @property
    def created(self) -> int:
        return int(self.wall_time())

    def check_model(self, name: str | None) -> str:
        """The name to answer with: of the model, or of an adapter. Raises ``ApiError`` for what is not served here."""
        served = self.options.model_name
        if name in self.adapters:
            return str(name)
        if name not in (None, served):
            there = ", ".join(repr(one) for one in (served, *self.adapters))
            message = f"there is no model {name!r} here; this server has {there}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return served

    def adapter(self, name: str) -> LoRARequest | None:
        """What ``check_model`` answers, as the engine takes it."""
        return LoRARequest(name, 0) if name in self.adapters else None


def serving_of(request: Request) -> Serving:
    """For ``Depends``."""
    return request.app.state.serving
