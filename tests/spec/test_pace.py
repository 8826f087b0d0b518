"""When drafts are held back."""

from __future__ import annotations

from headrace.spec import FULL_PACE, AdaptivePace
from headrace.spec.pace import NO_LIMIT


def test_without_options_nothing_is_held_back() -> None:
    pace = AdaptivePace()
    for _ in range(100):
        pace.checked(0)
    assert pace.most(1000) == FULL_PACE.most(1000) == NO_LIMIT


def test_more_sequences_than_max_concurrency_draft_nothing() -> None:
    pace = AdaptivePace(max_concurrency=4)
    assert [pace.most(n) for n in (1, 4, 5)] == [NO_LIMIT, NO_LIMIT, 0]


def test_a_schedule_counts_up_to_its_numbers_and_ends_with_the_largest() -> None:
    pace = AdaptivePace(schedule={4: 3, 1: 8, 16: 1})
    assert [pace.most(n) for n in (1, 2, 4, 5, 16, 17)] == [8, 3, 3, 1, 1, 0]


def test_drafts_end_for_good_when_a_window_of_checks_has_yielded_too_little() -> None:
    pace = AdaptivePace(window=3, threshold=1.5)
    for accepted in (0, 0):
        pace.checked(accepted)
    assert not pace.is_off
    pace.checked(2)  # 1 + 1 + 3 tokens in 3 checks: 1.67 each
    assert not pace.is_off
    pace.checked(0)  # 1 + 3 + 1
    assert not pace.is_off
    pace.checked(0)
    assert not pace.is_off
    pace.checked(0)  # 1 + 1 + 1
    assert pace.is_off
    pace.checked(5)
    assert pace.most(1) == 0
