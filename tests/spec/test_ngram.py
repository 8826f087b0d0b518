"""The n-gram proposer against a search through the whole text, written from the definition."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.errors import ConfigError
from headrace.spec import NGramProposer, NoProposer

TOKENS = st.integers(0, 3)
TEXTS = st.lists(TOKENS, max_size=40)


def search(
    events: list[tuple[list[int], int]], text: list[int], max_ngram: int, oldest: bool, length: int
) -> tuple[int, ...]:
    """``events``: (text, index of a token in it) in order of arrival, of those still remembered."""
    for size in range(min(max_ngram, len(text)), 0, -1):
        wanted = text[len(text) - size :]
        found = [(t, i) for t, i in events if i >= size and t[i - size : i] == wanted]
        if found:
            source, start = found[0 if oldest else -1]
            return tuple(source[start : start + length])
    return ()


@given(
    st.lists(st.tuples(st.integers(0, 2), st.lists(TOKENS, min_size=1, max_size=6)), max_size=25),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(0, 6),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 7, 1000]),
)
def test_equals_a_search_of_the_whole_text(
    arrivals: list[tuple[int, list[int]]],
    max_ngram: int,
    max_draft: int,
    limit: int,
    keep_all: bool,
    use_oldest: bool,
    public: bool,
    pool_tokens: int,
) -> None:
    proposer = NGramProposer(
        max_draft,
        max_ngram,
        is_keep_all=keep_all,
        is_use_oldest=use_oldest,
        is_public_pool=public,
        max_pool_tokens=pool_tokens,
    )
    texts: dict[int, list[int]] = {seq: [] for seq in range(3)}
    events: list[tuple[list[int], int]] = []
    for seq in texts:
        proposer.admit(seq, ())
    for seq, tokens in arrivals:
        proposer.extend(seq, tokens)
        for token in tokens:
            texts[seq].append(token)
            if len(texts[seq]) > 1:  # the first token follows nothing
                events.append((texts[seq], len(texts[seq]) - 1))
        if public:
            visible = events[-pool_tokens:]
        else:
            visible = [event for event in events if event[0] is texts[seq]]
        expected = search(visible, texts[seq], max_ngram, keep_all and use_oldest, min(limit, max_draft))
        assert proposer.propose(seq, limit) == expected


def test_the_example_of_the_docstring() -> None:
    text = [1, 2, 3, 4, 1, 2, 5, 9, 1, 2]
    drafts = {}
    for oldest in (True, False):
        proposer = NGramProposer(3, 2, is_use_oldest=oldest, is_public_pool=False)
        proposer.admit(7, text)
        drafts[oldest] = proposer.propose(7, 10)
    assert drafts == {True: (3, 4, 1), False: (5, 9, 1)}


def test_longest_ngram_goes_first() -> None:
    proposer = NGramProposer(1, 3, is_public_pool=False)
    proposer.admit(0, [2, 8, 1, 2, 9, 1, 2])
    assert proposer.propose(0, 1) == (9,), "(1, 2) was followed by 9; the older place of (2,) alone by 8"


@pytest.mark.parametrize(("public", "expected"), [(True, (3,)), (False, ())])
def test_only_the_public_pool_learns_from_strangers(public: bool, expected: tuple[int, ...]) -> None:
    proposer = NGramProposer(4, 2, is_public_pool=public)
    proposer.admit(0, [1, 2, 3])
    proposer.drop(0)
    proposer.admit(1, [1, 2])
    assert proposer.propose(1, 4) == expected


@pytest.mark.parametrize("oldest", [True, False])
def test_public_pool_is_bounded(oldest: bool) -> None:
    proposer = NGramProposer(4, 3, is_use_oldest=oldest, max_pool_tokens=100)
    for seq in range(50):
        proposer.admit(seq, [seq, *range(seq % 7), seq + 1] * 5)
        proposer.drop(seq)
    pool = proposer._public
    assert pool is not None
    assert len(pool._log) == 100
    assert 0 < len(pool._places) <= 300


def test_private_pool_is_gone_with_drop() -> None:
    proposer = NGramProposer(4, 2, is_public_pool=False)
    proposer.admit(3, [1, 2, 1])
    assert proposer.propose(3, 4) == (2, 1)
    proposer.drop(3)
    assert not proposer._texts
    assert not proposer._pools
    proposer.admit(3, [1])
    assert proposer.propose(3, 4) == ()


def test_calls_out_of_order_are_loud() -> None:
    proposer = NGramProposer(4)
    proposer.admit(1, [1])
    with pytest.raises(ValueError, match="sequence 1 is already admitted"):
        proposer.admit(1, [1])
    for call in (lambda: proposer.propose(2, 1), lambda: proposer.extend(2, [1]), lambda: proposer.drop(2)):
        with pytest.raises(KeyError, match="2"):
            call()


@pytest.mark.parametrize("field", ["max_draft_len", "max_matching_ngram_size", "max_pool_tokens"])
def test_options_below_one_are_refused_by_name(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field}=0: must be at least 1"):
        NGramProposer(**{"max_draft_len": 4, field: 0})


@given(TEXTS)
def test_no_proposer_proposes_nothing(text: list[int]) -> None:
    proposer = NoProposer()
    proposer.admit(0, text)
    proposer.extend(0, text)
    assert proposer.propose(0, 8) == ()
    proposer.drop(0)
    assert not proposer.needs_tokens


def test_imports_no_torch() -> None:
    code = "import sys, headrace.spec; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
