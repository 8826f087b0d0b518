"""What is kept from step to step against what the whole history says."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headrace.sampling.history import NgramIndex, TokenCounts, TopPDecay

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


FEW = st.integers(0, 3)


@given(st.lists(FEW, max_size=30), st.integers(1, 4), st.data())
def test_n_grams_equal_looking_at_everything(history: list[int], size: int, data: st.DataObject) -> None:
    index = NgramIndex(size, vocab_size=3)  # id 3 has no logit
    for _ in range(data.draw(st.integers(1, 6))):
        known = history[: data.draw(st.integers(0, len(history)))]
        drafts = data.draw(st.lists(FEW, max_size=4))
        index.advance(np.array(known, np.int32))
        whole = known + drafts
        grams = {tuple(whole[i : i + size]) for i in range(len(whole) - size + 1)}
        end = tuple(whole[len(whole) - size + 1 :])
        banned = [token for token in range(3) if (*end, token) in grams] if len(whole) >= size - 1 else []
        assert sorted(index.banned(np.array(known, np.int32), drafts).tolist()) == banned


@given(st.lists(FEW, max_size=20), st.data())
def test_top_p_equals_going_through_everything(output: list[int], data: st.DataObject) -> None:
    decay = TopPDecay(2, 0.9, 0.7, 0.2, 3)
    for _ in range(data.draw(st.integers(1, 6))):
        known = output[: data.draw(st.integers(0, len(output)))]
        drafts = data.draw(st.lists(FEW, max_size=4))
        expected = 0.9
        for token in known + drafts:
            expected = 0.9 if token == 3 else max(expected * 0.7, 0.2)
        decay.advance(np.array([3, 3, *known], np.int32))
        assert decay.with_drafts(drafts) == expected
