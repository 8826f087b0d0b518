"""What the outside may ask of the scheduler. Taken in between two steps, in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.core.plan import FinishReason
from headrace.core.request import Request

if TYPE_CHECKING:
    from .scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class Submit:
    """A new request."""

    request: Request


@dataclass(frozen=True, slots=True)
class Refuse:
    """A request that was announced to the loop ends without having been submitted."""

    request: Request
    reason: FinishReason
    error: Exception | None


@dataclass(frozen=True, slots=True)
class Cancel:
    """All sequences of a request end with CANCELLED. One that has ended already stays as it is."""

    request_id: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The front has seen the end of one output (a stop string). Results in flight for it are discarded."""

    request_id: int
    index: int
    reason: FinishReason
    stop_reason: int | str | None = None


@dataclass(frozen=True, slots=True)
class Control:
    """Something to be done with the scheduler between two steps. Neither part may raise: the caller waits elsewhere."""

    run: Callable[[Scheduler], None]
    give_up: Callable[[Exception], None]
    """Called instead of ``run`` when the engine has ended first."""


Command = Submit | Refuse | Cancel | Finish | Control
