"""Counts kept from step to step against counts of the whole history."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headrace.sampling.history import TokenCounts

VOCAB = 70
TOKENS = st.integers(0, VOCAB + 2)  # the last three have no logit


def expected(history: list[int], n_prompt: int) -> dict[int, int]:
    output = Counter(history[n_prompt:])
    return {token: output[token] for token in history if token < VOCAB}


@given(st.lists(TOKENS, max_size=150), st.data())
def test_equals_counting_from_scratch(history: list[int], data: st.DataObject) -> None:
    """Growing by any steps, falling back to any length, drafts at any time; drafts leave no trace."""
    n_prompt = data.draw(st.integers(0, len(history)))
    counts = TokenCounts(n_prompt, VOCAB)
    for _ in range(data.draw(st.integers(1, 6))):
        known = history[: data.draw(st.integers(n_prompt, len(history)))]
        drafts = data.draw(st.lists(TOKENS, max_size=4))
        counts.advance(np.array(known, np.int32))
        ids, in_output = counts.with_drafts(tuple(drafts))
        assert len(set(ids.tolist())) == len(ids)
        assert dict(zip(ids.tolist(), in_output.tolist(), strict=True)) == expected(known + drafts, n_prompt)


def test_looks_at_new_tokens_only() -> None:
    counts = TokenCounts(2, VOCAB)
    counts.advance(np.array([1, 2, 3]))
    counts.advance(np.array([9, 9, 9, 3]))  # what was counted is not read again
    ids, in_output = counts.with_drafts(())
    assert dict(zip(ids.tolist(), in_output.tolist(), strict=True)) == {1: 0, 2: 0, 3: 2}
