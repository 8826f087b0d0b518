"""Records of finished requests: when each was where, and what it took. The last ones, until they are read."""

from __future__ import annotations

from collections import deque
from typing import Any

from headrace.core.outputs import RequestPerfMetrics
from headrace.engine.results import RequestOutput


class PerfRecords:
    """A ring of ``capacity`` records; the oldest makes room. ``capacity`` 0 keeps none."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._records: deque[dict[str, Any]] = deque(maxlen=capacity)

    def add(self, name: str | None, output: RequestOutput) -> None:
        """One record for each output of a request that has ended by itself. ``name``: the id of the HTTP answer;
        None: not to be recorded."""
        if self.capacity == 0 or name is None:
            return
        for one in output.outputs:
            if one.request_perf_metrics is not None:
                self._records.append(
                    {
                        "request_id": output.request_id,
                        "id": name,
                        "index": one.index,
                        "finish_reason": one.finish_reason,
                        "prompt_tokens": len(output.prompt_token_ids),
                        "completion_tokens": one.length,
                        "perf_metrics": _metrics(one.request_perf_metrics),
                    }
                )

    def drain(self) -> list[dict[str, Any]]:
        """The records since the last call, oldest first."""
        records = list(self._records)
        self._records.clear()
        return records


def _metrics(one: RequestPerfMetrics) -> dict[str, Any]:
    """Names of groups and times are those of TensorRT-LLM's /perf_metrics. Seconds on the machine's monotonic clock;
    None for what has not happened."""
    drafts, accepted = one.draft_tokens, one.accepted_draft_tokens
    speculative = {
        "acceptance_rate": accepted / drafts if drafts else 0.0,
        "total_accepted_draft_tokens": accepted,
        "total_draft_tokens": drafts,
    }
    return {
        "timing_metrics": {
            "arrival_time": one.arrival_time,
            "first_scheduled_time": one.first_scheduled_time,
            "first_token_time": one.first_token_time,
            "last_token_time": one.last_token_time,
        },
        "kv_cache_metrics": {
            "cached_tokens": one.cached_tokens,
            "cache_miss": None if one.cache_miss is None else one.cache_miss.value,
        },
        "preemptions": one.preemptions,
        **({"speculative_decoding": speculative} if drafts else {}),
    }
