"""Prometheus metrics of finished requests. Names are close to those that dashboards for other engines know."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from headrace.core.outputs import RequestPerfMetrics
from headrace.engine.results import RequestOutput

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """A registry of its own for each server. All methods run in the event loop."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.running = Gauge("headrace_requests_running", "Requests under way.", registry=registry)
        self._ended = Counter(
            "headrace_request_success", "Outputs that have ended, by reason.", ["finish_reason"], registry=registry
        )
        self._adapter_running = Gauge(
            "headrace_lora_requests_running", "Requests under way, by adapter.", ["lora_name"], registry=registry
        )
        self._adapter_ended = Counter(
            "headrace_lora_requests", "Requests that have ended, however, by adapter.", ["lora_name"], registry=registry
        )
        self._failed = Counter("headrace_request_failure", "Requests that ended with an error.", registry=registry)
        self._gone = Counter("headrace_client_gone", "Requests whose client hung up.", registry=registry)
        self._prompt = Counter("headrace_prompt_tokens", "Prompt tokens of finished requests.", registry=registry)
        self._cached = Counter("headrace_cached_prompt_tokens", "Of these, taken from the cache.", registry=registry)
        self._made = Counter("headrace_generation_tokens", "Tokens generated.", registry=registry)
        self._preempted = Counter("headrace_preemptions", "Times that a request had to make room.", registry=registry)
        self._drafts = Counter(
            "headrace_spec_decode_draft_tokens", "Draft tokens that were checked.", registry=registry
        )
        self._accepted = Counter("headrace_spec_decode_accepted_tokens", "Of these, right.", registry=registry)
        self._queue = self._histogram("headrace_request_queue_time_seconds", "From arrival to the first step.")
        self._first = self._histogram("headrace_time_to_first_token_seconds", "From arrival to the first token.")
        self._each = self._histogram("headrace_time_per_output_token_seconds", "Mean time of the tokens after it.")
        self._whole = self._histogram("headrace_e2e_request_latency_seconds", "From arrival to the last token.")

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, buckets=_SECONDS, registry=self._registry)

    def begun(self, adapter: str | None) -> None:
        """A request is under way; ``adapter``: the name of its own, if it has one."""
        self.running.inc()
        if adapter is not None:
            self._adapter_running.labels(adapter).inc()

    def ended(self, adapter: str | None) -> None:
        """It no longer is, whatever became of it."""
        self.running.dec()
        if adapter is not None:
            self._adapter_running.labels(adapter).dec()
            self._adapter_ended.labels(adapter).inc()

    def finished(self, output: RequestOutput) -> None:
        """A request has ended by itself."""
        self._prompt.inc(len(output.prompt_token_ids))
        self._cached.inc(output.cached_tokens)
        for one in output.outputs:
            self._made.inc(one.length)
            self._ended.labels(one.finish_reason or "unknown").inc()
            if one.request_perf_metrics is not None:
                self._measure(one.request_perf_metrics, one.length)

    def failed(self) -> None:
        self._failed.inc()

    def gone(self) -> None:
        self._gone.inc()

    def _measure(self, times: RequestPerfMetrics, n_tokens: int) -> None:
        self._preempted.inc(times.preemptions)
        self._drafts.inc(times.draft_tokens)
        self._accepted.inc(times.accepted_draft_tokens)
        if times.first_scheduled_time is not None:
            self._queue.observe(times.first_scheduled_time - times.arrival_time)
        if times.first_token_time is None or times.last_token_time is None:
            return
        self._first.observe(times.first_token_time - times.arrival_time)
        self._whole.observe(times.last_token_time - times.arrival_time)
        if n_tokens > 1:
            self._each.observe((times.last_token_time - times.first_token_time) / (n_tokens - 1))

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)
