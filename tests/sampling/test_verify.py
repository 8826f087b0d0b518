"""The verifier by itself, and the property that makes speculation a feature that cannot be seen in the output."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_contract import EOS, IMPLEMENTATIONS, NAMES, TOKENS, VOCAB, params

from headrace.core.plan import FinishReason, SlotInit, TokenLogprobs
from headrace.core.sampling_params import SamplingParams
from headrace.sampling import NO_TOKEN, EndRules, Sampler, SampleRows, verify

RULES = EndRules(stop_ids=frozenset({2, 9}), eos_ids=frozenset({2}), max_length=100)


def test_drafts_are_accepted_up_to_the_first_that_differs() -> None:
    assert verify([5, 6, 7, 8], [5, 6, 0], 10, RULES) == ((5, 6, 7), 2, None, None, None)
    assert verify([5, 6, 7, 8], [5, 6, 7], 10, RULES) == ((5, 6, 7, 8), 3, None, None, None)
    assert verify([5, 6], [4], 10, RULES) == ((5,), 0, None, None, None)
    assert verify([5], [], 10, RULES) == ((5,), 0, None, None, None)


def test_the_first_token_that_ends_the_sequence_cuts() -> None:
    assert verify([5, 2, 7], [5, 2], 10, RULES) == ((5, 2), 2, FinishReason.STOP, None, None)
    assert verify([5, 9, 7], [5, 0], 10, RULES) == ((5, 9), 1, FinishReason.STOP, 9, None)
    assert verify([9, 9, 9], [9, 9], 10, RULES) == ((9,), 1, FinishReason.STOP, 9, None)


def test_length_cuts_and_a_stop_at_the_last_place_is_a_stop() -> None:
    assert verify([5, 6, 7], [5, 6], 98, RULES) == ((5, 6), 2, FinishReason.LENGTH, None, None)
    assert verify([5, 2, 7], [5, 2], 98, RULES) == ((5, 2), 2, FinishReason.STOP, None, None)
    assert verify([5], [], 99, RULES) == ((5,), 0, FinishReason.LENGTH, None, None)


def test_a_failed_row_matters_only_when_it_is_reached() -> None:
    assert verify([5, NO_TOKEN, 7], [5, 6], 10, RULES) == ((5,), 1, None, None, 1)
    assert verify([4, NO_TOKEN, 7], [5, 6], 10, RULES) == ((4,), 0, None, None, None)
    assert verify([NO_TOKEN], [], 10, RULES) == ((), 0, None, None, 0)


def test_rows_and_drafts_must_match() -> None:
    with pytest.raises(ValueError, match="2 drafts need 3 sampled rows, got 2"):
        verify([1, 2], [1, 2], 0, RULES)


# Speculation against plain decoding, on a model that is a function of the history.


def toy_logits(history: list[int], model: int) -> np.ndarray:
    """Spread logits of the last two tokens: histories recur, so drafts are often right, and options decide."""
    seed = zlib.crc32(bytes([model, *history[-2:]]))
    logits = np.random.default_rng(seed).normal(0, 3, VOCAB)
    return np.round(logits, 1).astype(np.float32)


class Generation:
    """Decodes one request on the toy model, with drafts or without."""

    def __init__(self, sampler: Sampler, init: SlotInit, model: int) -> None:
        self._sampler, self._init, self._model = sampler, init, model
        self._rules = EndRules(init.stop_ids, init.eos_ids, init.max_length)
        self.tokens = list(init.tokens)
        self.logprobs: list[TokenLogprobs] = []
        self.end: tuple[FinishReason | str | None, int | None] | None = None
        self.n_accepted = 0
        sampler.bind(init)

    def step(self, drafts: tuple[int, ...]) -> None:
        n, slot = 1 + len(drafts), self._init.slot
        history = np.array(self.tokens, np.int32)
        rows = SampleRows(np.full(n, slot), len(history) + np.arange(n), np.array([0]), [drafts], lambda slot: history)
        logits = [toy_logits([*self.tokens, *drafts[:i]], self._model) for i in range(n)]
        outcome = self._sampler.sample(rows, torch.from_numpy(np.stack(logits)))
        done = verify(outcome.tokens.tolist(), drafts, len(history), self._rules)
        self.tokens += done.tokens
        self.logprobs += [outcome.logprobs[i] for i in range(len(done.tokens)) if outcome.logprobs]
        self.n_accepted += done.n_accepted
        if done.failed_row is not None:
            self.end = (outcome.errors[done.failed_row], None)
        elif done.finish:
            self.end = (done.finish, done.stop_reason)


@st.composite
def requests(draw: st.DrawFn) -> SlotInit:
    prompt = tuple(draw(st.lists(TOKENS, min_size=1, max_size=4)))
    sampling: SamplingParams = draw(params())
    return SlotInit(
        slot=0,
        seq_id=0,
        tokens=prompt,
        n_prompt=len(prompt),
        computed=0,
        sampling=sampling,
        seed=draw(st.integers(0, 2**64 - 1)),
        output_index=draw(st.integers(0, 2)),
        stop_ids=frozenset({EOS, *(sampling.stop_token_ids or ())}),
        eos_ids=frozenset({EOS}),
        max_length=len(prompt) + draw(st.integers(1, 12)),
    )


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=120, deadline=None)
@given(init=requests(), model=st.integers(0, 9), data=st.data())
def test_speculation_equals_plain_decoding(name: str, init: SlotInit, model: int, data: st.DataObject) -> None:
    """Any drafts, right ones and wrong ones, any options: the same tokens, logprobs and end."""
    plain = Generation(IMPLEMENTATIONS[name](1, VOCAB), init, model)
    while plain.end is None:
        plain.step(())
    speculating = Generation(IMPLEMENTATIONS[name](1, VOCAB), init, model)
    while speculating.end is None:
        future = plain.tokens[len(speculating.tokens) :]
        right = data.draw(st.integers(0, len(future)))
        wrong = data.draw(st.lists(TOKENS, max_size=2))
        speculating.step((*future[:right], *wrong)[:4])
    assert speculating.tokens == plain.tokens
    assert speculating.logprobs == plain.logprobs
    assert speculating.end == plain.end


def test_right_drafts_save_steps() -> None:
    """The property above would hold for a verifier that accepts nothing; this one would not."""
    init = SlotInit(0, 0, (1,), 1, 0, SamplingParams(temperature=1.0), 3, 0, frozenset(), frozenset(), 17)
    plain = Generation(IMPLEMENTATIONS["torch"](1, VOCAB), init, 1)
    while plain.end is None:
        plain.step(())
    speculating = Generation(IMPLEMENTATIONS["torch"](1, VOCAB), init, 1)
    n_steps = 0
    while speculating.end is None:
        n_known = len(speculating.tokens)
        speculating.step(tuple(plain.tokens[n_known : n_known + 3]))
        n_steps += 1
    assert (n_steps, speculating.n_accepted) == (4, 12)
    assert speculating.end == plain.end == (FinishReason.LENGTH, None)
