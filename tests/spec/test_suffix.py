"""The suffix proposer against a search through the whole text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.errors import ConfigError
from headrace.spec import SuffixProposer


def continuations(text: list[int], min_length: int, limit: int) -> set[tuple[int, ...]]:
    """What followed the longest repeated suffix, wherever it occurred before; empty where nothing is long enough."""
    n = len(text)
    for length in range(n - 1, min_length - 1, -1):
        suffix = text[n - length :]
        found = {
            tuple(text[at + length : at + length + limit])
            for at in range(n - length)
            if text[at : at + length] == suffix
        }
        if found:
            return found
    return set()


@given(st.lists(st.integers(0, 2), min_size=1, max_size=60), st.integers(1, 4), st.integers(1, 5), st.integers(0, 6))
def test_drafts_follow_the_longest_repeated_suffix(text: list[int], cut: int, min_length: int, limit: int) -> None:
    proposer = SuffixProposer(4, min_length)
    proposer.admit(7, text[:cut])
    for token in text[cut:]:
        proposer.extend(7, (token,))
    expected = continuations(text, min_length, min(limit, 4))
    got = proposer.propose(7, limit)
    assert got in expected if expected else got == ()


def test_the_latest_occurrence_is_preferred() -> None:
    proposer = SuffixProposer(2)
    proposer.admit(0, [1, 2, 3, 4, 9, 1, 2, 5, 6, 9, 1, 2])
    assert proposer.propose(0, 4) == (5, 6)


def test_sequences_are_apart_and_let_go() -> None:
    proposer = SuffixProposer(3, 1)
    proposer.admit(0, [1, 2, 1])
    proposer.admit(1, [4, 5])
    assert (proposer.propose(0, 3), proposer.propose(1, 3)) == ((2, 1), ())
    with pytest.raises(ValueError, match="already admitted"):
        proposer.admit(1, [1])
    proposer.drop(0)
    with pytest.raises(KeyError):
        proposer.propose(0, 1)


@pytest.mark.parametrize("wrong", [{"max_draft_len": 0}, {"max_draft_len": 1, "min_matching_length": 0}])
def test_lengths_are_positive(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        SuffixProposer(**wrong)
