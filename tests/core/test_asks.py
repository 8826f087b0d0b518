"""What a request asks the cache to keep: by block, and what makes no sense."""

from __future__ import annotations

from datetime import timedelta

import pytest

from headrace import ConfigError, KvCacheRetentionConfig, RequestError, TokenRangeRetentionConfig
from headrace.core.retention import USUAL_ASKS, Ask, asks_of

Range = TokenRangeRetentionConfig


def priorities(n_prompt: int, *ranges: Range, **decode: float) -> list[int]:
    """Of the prompt's blocks, and of those after it."""
    asks = asks_of(KvCacheRetentionConfig(token_range_retention_configs=ranges, **decode), n_prompt)
    return [asks.of(number).priority for number in range(-(-n_prompt // 32) + 1)]


def test_a_block_goes_by_its_first_token_and_is_worth_what_comes_after_it() -> None:
    assert priorities(100) == [35] * 5
    assert priorities(100, Range(0, 33, 80)) == [80, 80, 35, 35, 35]
    assert priorities(100, Range(0, 32, 80), Range(32, 64, 90)) == [90, 90, 35, 35, 35]
    assert priorities(100, Range(64, None, 50)) == [50, 50, 50, 50, 35], "what is before them is needed for them"
    assert priorities(100, decode_retention_priority=60) == [60] * 5


def test_what_is_thrown_away_takes_along_what_nobody_names() -> None:
    assert priorities(100, Range(0, None, 0)) == [0] * 5
    assert priorities(100, Range(32, 64, 10)) == [35, 10, 10, 10, 10]
    assert priorities(100, Range(0, None, 0), decode_retention_priority=35) == [35] * 5


def test_durations_are_seconds_and_the_longer_one_wins() -> None:
    asks = asks_of(KvCacheRetentionConfig(token_range_retention_configs=[Range(0, 32, 80, timedelta(seconds=2))]), 40)
    assert (asks.of(0), asks.of(1)) == (Ask(80, 2.0), Ask())
    both = [Range(0, 32, 80, 500.0), Range(32, 64, 80)]
    assert asks_of(KvCacheRetentionConfig(token_range_retention_configs=both), 64).of(0) == Ask(80, None)
    assert USUAL_ASKS.of(7) == Ask(35, None)


def test_ranges_that_make_no_sense_are_refused_by_name() -> None:
    assert KvCacheRetentionConfig.TokenRangeRetentionConfig is Range
    for wrong, message in (
        (lambda: Range(0, 10, 101), "priority"),
        (lambda: Range(-1, 10), "token_start"),
        (lambda: Range(10, 10), "token_end=10 is not behind token_start=10"),
        (lambda: Range(0, 10, 35, 0), "duration_ms"),
        (lambda: KvCacheRetentionConfig(decode_priority=3), "decode_priority"),
        (
            lambda: KvCacheRetentionConfig(token_range_retention_configs=[Range(5, None), Range(9, 10)]),
            "begin at 5 and 9 overlap",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            wrong()
    with pytest.raises(RequestError, match="token_start=40, and the prompt has 40 tokens"):
        asks_of(KvCacheRetentionConfig(token_range_retention_configs=[Range(40, None, 80)]), 40)
