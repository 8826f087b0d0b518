"""A running engine: the front here, and a backend wherever it is. No torch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from headrace.core.clock import Clock
from headrace.core.outputs import EngineHealth
from headrace.core.reasoning import Reasoning
from headrace.media.contract import MediaProcessor
from headrace.tokenizer.tokenizer import Tokenizer

from .backend import Backend, StartReport
from .front import Front, FrontLimits


class Engine:
    """Starts the backend's loop. ``front`` is where requests go in."""

    def __init__(
        self,
        backend: Backend,
        report: StartReport,
        tokenizer: Tokenizer | None,
        clock: Clock,
        connect: Callable[[asyncio.AbstractEventLoop], None] = lambda loop: None,
        media: MediaProcessor | None = None,
        reasoning: Reasoning | None = None,
    ) -> None:
        """``connect``: what takes in the backend's news in an event loop, if that is where they come in. ``media``:
        None for a model that reads text only. ``reasoning``: None where thinking is text like any other."""
        self.backend = backend
        self.report = report
        self.tokenizer = tokenizer
        self.connect = connect
        self.reasoning = reasoning
        eos_ids = report.eos_ids | (frozenset() if tokenizer is None else tokenizer.eos_ids)
        self.effective = report.effective | {"eos_ids": sorted(eos_ids)}
        """Settings as they really are."""
        sizes = report.vocab_size, report.max_seq_len, report.max_input_len
        limits = FrontLimits(*sizes, eos_ids, report.pooling, report.takes_adapters, report.keeps_prefixes)
        self.front = Front(limits, tokenizer, clock, backend, media)
        backend.start(self.front.deliver, self.front.fail)

    @property
    def health(self) -> EngineHealth:
        return self.backend.health()

    def get_stats(self, timeout: float | None) -> list[dict[str, Any]]:
        """Iterations since the last call, then a snapshot with ``witnesses``. Raises ``EngineDeadError``."""
        return self._complete(self.backend.call("stats").result(timeout))

    async def get_stats_async(self, timeout: float | None) -> list[dict[str, Any]]:
        """As ``get_stats``, in a coroutine."""
        return self._complete(await asyncio.wait_for(asyncio.wrap_future(self.backend.call("stats")), timeout))

    def _complete(self, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        entries[-1]["witnesses"] |= self.front.counters
        return entries

    def shutdown(self) -> None:
        """Cancels what runs and gives everything back. May be called twice."""
        self.backend.shutdown()
