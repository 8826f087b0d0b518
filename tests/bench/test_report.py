"""The arithmetic of reports."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.bench.load import Timing, random_prompts
from headrace.bench.report import percentile, spread, summarise
from headrace.bench.roofline import Roofline


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_a_value_that_enough_others_do_not_exceed(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    smaller = [value for value in values if value < found]
    assert len(smaller) < share * len(values)


def test_no_values_give_no_percentile() -> None:
    assert math.isnan(spread([]).p50)


def test_a_report_of_two_requests() -> None:
    first = Timing(submitted=0.0, n_prompt=10, n_cached=4, arrivals=[(1.0, 1), (1.5, 1), (2.5, 2)])
    second = Timing(submitted=1.0, n_prompt=6, arrivals=[(4.0, 1)])
    report = summarise([first, second], concurrency=2)
    assert (report.prompt_tokens, report.output_tokens, report.cached_tokens) == (16, 5, 4)
    assert report.seconds == 4.0
    assert report.output_rate == 5 / 4.0
    assert report.total_rate == 21 / 4.0
    assert first.gaps() == [0.5, 0.5, 0.5]
    assert report.decode_rate == 2.0
    assert report.to_first_token.p50 == 1.0
    assert report.to_first_token.p99 == 3.0
    assert (report.whole.p50, report.whole.p99) == (2.5, 3.0)


def test_the_roofline_counts_weights_once_and_the_cache_for_each() -> None:
    roofline = Roofline(bandwidth=1000.0, weights=400, kv_bytes_per_token=2.0)
    assert roofline.step_bytes(4, 25) == 600
    assert roofline.tokens_per_second(4, 25) == pytest.approx(4 * 1000 / 600)


def test_the_roofline_counts_experts_that_somebody_is_sent_to() -> None:
    roofline = Roofline(bandwidth=1000.0, weights=400, kv_bytes_per_token=0.0, experts=320, expert_share=0.25)
    assert roofline.step_bytes(1, 10) == 400 - 320 + 80
    # Of every 16 experts 4 are met by the first, and 3 of the other 12 by the second.
    assert roofline.step_bytes(2, 10) == 400 - 320 + 140


def test_random_prompts_repeat_with_their_seed_and_share_no_prefix() -> None:
    prompts = random_prompts(20, 16, 1000, seed=1)
    assert prompts == random_prompts(20, 16, 1000, seed=1)
    assert prompts != random_prompts(20, 16, 1000, seed=2)
    assert len({tuple(prompt[:4]) for prompt in prompts}) == 20
    assert all(0 <= token < 1000 for prompt in prompts for token in prompt)
