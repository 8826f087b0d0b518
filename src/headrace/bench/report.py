"""Numbers out of timings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from headrace.bench.load import Timing


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles in seconds."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class Report:
    """What a run showed. Times in seconds, rates in tokens a second."""

    requests: int
    concurrency: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    seconds: float
    output_rate: float
    """Output tokens a second, prefill time included."""
    decode_rate: float
    """Tokens a second one sequence gets once its first token is there: 1 / mean inter-token latency."""
    total_rate: float
    """Prompt and output tokens a second."""
    to_first_token: Spread
    between_tokens: Spread
    whole: Spread
    """From submission to the last token."""


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` (0 to 1) of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def spread(values: Sequence[float]) -> Spread:
    """Percentiles of ``values``; NaN where there are none."""
    if not values:
        return Spread(math.nan, math.nan, math.nan)
    return Spread(percentile(values, 0.5), percentile(values, 0.9), percentile(values, 0.99))


def summarise(timings: Sequence[Timing], concurrency: int) -> Report:
    """The report of a run of at least one request that brought tokens."""
    seconds = max(one.end for one in timings) - min(one.submitted for one in timings)
    prompt, output = sum(one.n_prompt for one in timings), sum(one.n_output for one in timings)
    gaps = [gap for one in timings for gap in one.gaps()]
    return Report(
        requests=len(timings),
        concurrency=concurrency,
        prompt_tokens=prompt,
        cached_tokens=sum(one.n_cached for one in timings),
        output_tokens=output,
        seconds=seconds,
        output_rate=output / seconds,
        decode_rate=len(gaps) / sum(gaps) if gaps else math.nan,
        total_rate=(prompt + output) / seconds,
        to_first_token=spread([one.to_first_token for one in timings]),
        between_tokens=spread(gaps),
        whole=spread([one.end - one.submitted for one in timings]),
    )
