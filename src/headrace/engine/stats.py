"""Iteration statistics and witnesses. Keys are those of TensorRT-LLM's iteration statistics where it has them."""

from __future__ import annotations

import threading
from collections import Counter, deque
from typing import Any

from headrace.core.clock import Clock
from headrace.core.plan import Rows, StepPlan, StepResult
from headrace.sched.scheduler import Scheduler


class StatsRecorder:
    """The loop's observer: remembers the last iterations until they are asked for."""

    def __init__(self, scheduler: Scheduler, clock: Clock, max_iterations: int, drafts_by: str = "") -> None:
        """``drafts_by``: the ``decoding_type`` that drafts; empty: nothing does."""
        self._scheduler = scheduler
        self._clock = clock
        self._iterations: deque[dict[str, Any]] = deque(maxlen=max_iterations)
        self._drafts_by = drafts_by
        self._lock = threading.Lock()
        self._worker_counters: Counter[str] = Counter()

    def observe(self, plan: StepPlan, result: StepResult) -> None:
        """Called by the loop after every step."""
        self._worker_counters.update(result.counters)
        contexts = [work for work in plan.works if work.outputs is Rows.NONE or work.n_tokens > 1]
        entry = {
            "iter": plan.step,
            "timestamp": self._clock.now(),
            "iterLatencyMS": result.seconds * 1e3,
            **self._scheduler.stats(),
            "inflightBatchingStats": {
                "numScheduledRequests": len(plan.works),
                "numContextRequests": len(contexts),
                "numCtxTokens": sum(work.n_tokens for work in contexts),
                "numGenRequests": len(plan.works) - len(contexts),
            },
            "specDecodingStats": {
                "decodingType": self._drafts_by,
                "numDraftTokens": sum(one.n_drafts for one in result.results),
                "numAcceptedTokens": sum(one.n_accepted for one in result.results),
            },
        }
        with self._lock:
            self._iterations.append(entry)

    def drain(self) -> list[dict[str, Any]]:
        """The iterations since the last call, oldest first."""
        with self._lock:
            entries = list(self._iterations)
            self._iterations.clear()
        return entries

    def witnesses(self) -> dict[str, int]:
        """Counters of scheduler, cache and worker. Call it in the loop."""
        return {**self._scheduler.counters(), **self._worker_counters}
