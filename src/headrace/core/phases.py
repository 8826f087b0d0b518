"""Where the time of a start goes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from .clock import Clock, SystemClock

log = logging.getLogger("headrace")


class Phases:
    """Times the phases of a start and says each as it ends."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self.done: list[tuple[str, float]] = []
        """(phase, seconds) in order."""

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        start = self._clock.now()
        yield
        self.add(name, self._clock.now() - start)

    def add(self, name: str, seconds: float) -> None:
        """A phase that was timed elsewhere."""
        self.done.append((name, seconds))
        log.info("%s: %.2f s", name, seconds)
