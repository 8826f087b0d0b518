"""Prometheus metrics of finished requests. Names are close to those that dashboards for other engines know."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from headrace.engine.results import CompletionOutput, RequestOutput

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """A registry of its own for each server. All methods run in the event loop."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.running = Gauge("headrace_requests_running", "Requests under way.", registry=registry)
        self._ended = Counter(
            "headrace_request_success", "Outputs that have ended, by reason.", ["finish_reason"], registry=registry
        )
        self._failed = Counter("headrace_request_failure", "Requests that ended with an error.", registry=registry)
        self._gone = Counter("headrace_client_gone", "Requests whose client hung up.", registry=registry)
        self._prompt = Counter("headrace_prompt_tokens", "Prompt tokens of finished requests.", registry=registry)
        self._cached = Counter("headrace_cached_prompt_tokens", "Of these, taken from the cache.", registry=registry)
        self._made = Counter("headrace_generation_tokens", "Tokens generated.", registry=registry)
        self._first = self._histogram("headrace_time_to_first_token_seconds", "From arrival to the first token.")
        self._each = self._histogram("headrace_time_per_output_token_seconds", "Mean time of the tokens after it.")
        self._whole = self._histogram("headrace_e2e_request_latency_seconds", "From arrival to the last token.")

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, buckets=_SECONDS, registry=self._registry)

    def finished(self, output: RequestOutput) -> None:
        """A request has ended by itself."""
        self._prompt.inc(len(output.prompt_token_ids))
        self._cached.inc(output.cached_tokens)
        for one in output.outputs:
            self._made.inc(one.length)
            self._ended.labels(one.finish_reason or "unknown").inc()
            self._time(one)

    def failed(self) -> None:
        self._failed.inc()

    def gone(self) -> None:
        self._gone.inc()

    def _time(self, one: CompletionOutput) -> None:
        times = one.request_perf_metrics
        if times is None or times.first_token_time is None or times.last_token_time is None:
            return
        self._first.observe(times.first_token_time - times.arrival_time)
        self._whole.observe(times.last_token_time - times.arrival_time)
        if one.length > 1:
            self._each.observe((times.last_token_time - times.first_token_time) / (one.length - 1))

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)
