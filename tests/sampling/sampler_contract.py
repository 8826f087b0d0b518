"""What the contract tests share: the implementations under test, requests drawn by hypothesis, and ways to run them.

A sampler is added to the contract by adding it to ``IMPLEMENTATIONS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from headrace.core.plan import SlotInit
from headrace.core.sampling_params import SamplingParams
from headrace.ops.native.core import is_available, reason
from headrace.sampling import NativeSampler, RowMasks, SampleOutcome, Sampler, SampleRows, TorchSampler

IMPLEMENTATIONS: dict[str, Callable[[int, int], Sampler]] = {"torch": TorchSampler, "native": NativeSampler}
"""Name to (n_slots, vocab_size) -> sampler."""

NEEDS_CORE = pytest.mark.skipif(not is_available(), reason=reason())
NAMES = ["torch", pytest.param("native", marks=NEEDS_CORE)]
"""The names as parameters of tests."""

VOCAB = 24
EOS = 2


@dataclass(frozen=True)
class Case:
    """One sequence in one step."""

    init: SlotInit
    history: list[int]
    drafts: tuple[int, ...]
    logits: np.ndarray
    """float32 [1 + len(drafts), VOCAB]."""
    allowed: tuple[frozenset[int] | None, ...] | None = None
    """The tokens of each row's mask, where there is one; None: no row has any."""


def sampling_params(**fields: object) -> SamplingParams:
    return SamplingParams(max_tokens=None, **fields)


def slot_init(slot: int, sampling: SamplingParams, n_prompt: int = 3, seed: int = 5, output_index: int = 0) -> SlotInit:
    stops = frozenset({EOS, *(sampling.stop_token_ids or ())})
    return SlotInit(
        slot=slot,
        seq_id=100 + slot,
        tokens=tuple(range(n_prompt)),
        n_prompt=n_prompt,
        computed=0,
        sampling=sampling,
        seed=seed,
        output_index=output_index,
        stop_ids=stops,
        eos_ids=frozenset({EOS}),
        max_length=1000,
        n_candidates=sampling.beam_width + len(stops) if sampling.use_beam_search else 0,
    )


def run(sampler: Sampler, cases: list[Case]) -> SampleOutcome:
    """One step of all cases; binds their slots first."""
    for case in cases:
        sampler.bind(case.init)
    counts = [1 + len(case.drafts) for case in cases]
    histories = {case.init.slot: np.array(case.history, np.int32) for case in cases}
    rows = SampleRows(
        slots=np.repeat([case.init.slot for case in cases], counts),
        positions=np.concatenate([len(case.history) + np.arange(n) for case, n in zip(cases, counts, strict=True)]),
        first_rows=np.cumsum([0, *counts[:-1]]),
        drafts=[case.drafts for case in cases],
        history=histories.__getitem__,
        masks=_masks(cases),
    )
    return sampler.sample(rows, torch.from_numpy(np.concatenate([case.logits for case in cases])))


def _masks(cases: list[Case]) -> RowMasks | None:
    allowed = [one for case in cases for one in case.allowed or (None,) * len(case.logits)]
    if not any(one is not None for one in allowed):
        return None
    vocab_size = cases[0].logits.shape[1]
    index, words = np.full(len(allowed), -1), []
    for row, tokens in enumerate(allowed):
        if tokens is not None:
            bits = np.zeros(-(-vocab_size // 32) * 32, bool)
            bits[list(tokens)] = True
            index[row] = len(words)
            words.append(np.packbits(bits, bitorder="little").view("<u4"))
    return RowMasks(index, np.stack(words))


def one_row(sampling: SamplingParams, logits: list[float], history: list[int] | None = None, **init: int) -> Case:
    """A case without drafts, over as many tokens as there are logits."""
    history = [0, 1, 3] if history is None else history
    return Case(slot_init(0, sampling, **init), history, (), np.array([logits], np.float32))


TOKENS = st.integers(0, VOCAB - 1)


def maybe(values: st.SearchStrategy) -> st.SearchStrategy:
    return st.none() | values


@st.composite
def params(draw: st.DrawFn) -> SamplingParams:
    """Any mix of options; each is often absent."""
    if draw(st.integers(0, 5)) == 0:
        drawing = {"use_beam_search": True, "best_of": draw(st.sampled_from([1, 2, 5, 30]))}
    else:
        drawing = {
            "top_k": draw(maybe(st.sampled_from([0, 1, 2, 5, VOCAB, 1000]))),
            "top_p": draw(maybe(st.sampled_from([1e-9, 0.3, 0.9, 0.999, 1.0]))),
            "top_p_decay": draw(maybe(st.sampled_from([0.5, 0.9, 1.0]))),
            "top_p_min": draw(maybe(st.sampled_from([1e-6, 0.4, 1.0]))),
            "min_p": draw(maybe(st.sampled_from([0.0, 0.02, 0.5, 1.0]))),
        }
    return sampling_params(
        **drawing,
        temperature=draw(maybe(st.sampled_from([0.0, 1e-40, 0.3, 1.0, 1.7, 50.0]))),
        no_repeat_ngram_size=draw(maybe(st.integers(0, 4))),
        repetition_penalty=draw(maybe(st.sampled_from([0.5, 1.0, 1.3]))),
        presence_penalty=draw(maybe(st.sampled_from([-1.0, 0.0, 0.7]))),
        frequency_penalty=draw(maybe(st.sampled_from([-0.3, 0.0, 0.4]))),
        min_tokens=draw(maybe(st.integers(0, 4))),
        stop_token_ids=draw(maybe(st.lists(TOKENS, max_size=2))),
        embedding_bias=draw(maybe(st.dictionaries(TOKENS, st.sampled_from([-np.inf, -2.0, 0.1, 3.0]), max_size=4))),
        bad_token_ids=draw(maybe(st.lists(st.lists(TOKENS, min_size=1, max_size=3), max_size=3))),
        logprobs=draw(maybe(st.sampled_from([0, 1, 4, 100]))),
        logprobs_mode=draw(st.sampled_from(["raw", "processed"])),
    )


@st.composite
def logit_rows(draw: st.DrawFn, n: int) -> np.ndarray:
    """Rows with many ties and some forbidden tokens, spread or flat."""
    grid = st.sampled_from([-np.inf, -30.0, -1.0, -0.25, 0.0, 0.125, 1.0, 1.0000001, 7.0])
    values = draw(st.lists(grid | st.floats(-20, 20, width=32), min_size=n * VOCAB, max_size=n * VOCAB))
    return np.array(values, np.float32).reshape(n, VOCAB)


@st.composite
def case(draw: st.DrawFn, slot: int) -> Case:
    history = draw(st.lists(TOKENS, min_size=1, max_size=10))
    drafts = tuple(draw(st.lists(TOKENS, max_size=3)))
    init = slot_init(
        slot,
        draw(params()),
        n_prompt=draw(st.integers(1, len(history))),
        seed=draw(st.integers(0, 2**64 - 1)),
        output_index=draw(st.integers(0, 3)),
    )
    masks = st.none() | st.frozensets(TOKENS, max_size=VOCAB)
    allowed = draw(maybe(st.tuples(*[masks] * (1 + len(drafts)))))
    return Case(init, history, drafts, draw(logit_rows(1 + len(drafts))), allowed)


@st.composite
def batch(draw: st.DrawFn) -> list[Case]:
    return [draw(case(slot)) for slot in draw(st.permutations(range(draw(st.integers(1, 4)))))]
