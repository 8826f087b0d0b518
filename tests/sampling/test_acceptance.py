"""Rejection sampling and relaxed acceptance: against their definitions, and by distribution."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from headrace.core.plan import SlotInit
from headrace.core.sampling_params import SamplingParams
from headrace.sampling import (
    Acceptance,
    NativeSampler,
    Relaxed,
    Remembering,
    SampleRows,
    SplitSampler,
    TorchSampler,
)
from headrace.sampling.acceptance import rejection
from headrace.sampling.philox import StreamKeys, noise_of_all

N, V = 1500, 9
BEGIN, END = 7, 8
LENGTH = 3
HISTORY = np.array([1, 2, 3], np.int32)


def bind(
    sampler: TorchSampler | SplitSampler, n: int, sampling: SamplingParams, prompt: tuple[int, ...] = (1, 2, 3)
) -> None:
    for slot in range(n):
        sampler.bind(
            SlotInit(slot, slot, prompt, len(prompt), 0, sampling, 1000 + slot, 0, frozenset(), frozenset(), 100)
        )


def target_logits(generator: torch.Generator) -> torch.Tensor:
    """[3, V]: of the rows after 0, 1 and 2 drafts; the second and third depend on nothing, so that p is known."""
    return 1.5 * torch.randn(3, V, generator=generator)


@pytest.fixture(scope="module", params=[{}, {"top_k": 5, "top_p": 0.95}], ids=["whole", "filtered"])
def run(request: pytest.FixtureRequest) -> tuple[list, list, torch.Tensor, torch.Tensor]:
    """Drafts and outcomes of N sequences that differ in their seeds alone; p of the three rows and q of both drafts."""
    sampling = SamplingParams(temperature=0.8, **request.param)
    generator = torch.Generator().manual_seed(4)
    p_logits, q_logits = target_logits(generator), target_logits(generator)[:2]
    acceptance = Acceptance(True, None)
    drafter = TorchSampler(N, V, Remembering(acceptance.board))
    sampler = SplitSampler(TorchSampler(N, V), N, V, acceptance)
    for one in (drafter, sampler):
        bind(one, N, sampling)
    slots, drafts = np.arange(N), []
    for i in range(2):
        rows = SampleRows.one_each(slots, np.full(N, LENGTH + i), lambda slot: HISTORY)
        drafts.append(drafter.sample(rows, q_logits[i].expand(N, V).contiguous()).tokens)
    pairs = [tuple(pair) for pair in np.stack(drafts, 1).tolist()]
    rows = SampleRows(np.repeat(slots, 3), LENGTH + np.tile(np.arange(3), N), 3 * slots, pairs, lambda slot: HISTORY)
    outcome = sampler.sample(rows, p_logits.repeat(N, 1))
    assert not acceptance.board
    return pairs, outcome.tokens.reshape(N, 3).tolist(), shares(p_logits, sampling), shares(q_logits, sampling)


def shares(logits: torch.Tensor, sampling: SamplingParams) -> torch.Tensor:
    """The definition in plain torch: temperature, top-k, then top-p within it."""
    p = (logits.double() / sampling.temperature).softmax(-1)
    if sampling.top_k:
        p = torch.where(p >= p.topk(sampling.top_k, -1).values[:, -1:], p, 0)
        p /= p.sum(-1, keepdim=True)
        ordered, order = p.sort(-1, descending=True)
        kept = torch.where(ordered.cumsum(-1) - ordered < sampling.top_p, ordered, 0)
        p = torch.zeros_like(p).scatter(-1, order, kept)
    return p / p.sum(-1, keepdim=True)


def assert_distributed(tokens: list[int], p: torch.Tensor) -> None:
    """Chi-square with at most 8 degrees of freedom: 37.3 is passed once in 100,000."""
    counts = torch.bincount(torch.tensor(tokens), minlength=len(p)).double()
    expected = p * len(tokens)
    assert counts[expected == 0].sum() == 0
    seen = expected > 0
    assert ((counts - expected)[seen].square() / expected[seen]).sum() < 37.3


def test_tokens_are_distributed_as_the_target_says_whatever_drafts(run: tuple) -> None:
    pairs, tokens, p, q = run
    for i in range(2):
        assert_distributed([pair[i] for pair in pairs], q[i])
    assert_distributed([three[0] for three in tokens], p[0])
    kept = [three for three, pair in zip(tokens, pairs, strict=True) if three[0] == pair[0]]
    assert_distributed([three[1] for three in kept], p[1])
    # What follows does not depend on what was kept: each token that a row may give is as likely after it.
    for token in Counter(three[0] for three in kept):
        after = [three[1] for three in kept if three[0] == token]
        if len(after) > 200:
            assert_distributed(after, p[1])
    both = [three for three, pair in zip(kept, pairs, strict=False) if three[1] == pair[1]]
    assert_distributed([three[2] for three in both], p[2])


def test_as_many_drafts_are_kept_as_can_be_and_more_than_by_comparing_draws(run: tuple) -> None:
    pairs, tokens, p, q = run
    share = np.mean([three[0] == pair[0] for three, pair in zip(tokens, pairs, strict=True)])
    best = float(torch.minimum(p[0], q[0]).sum())
    assert abs(share - best) < 4 * (best * (1 - best) / N) ** 0.5
    assert share > float((p[0] * q[0]).sum()) + 0.05


def test_drafts_that_nobody_drew_are_kept_as_often_as_they_are_likely() -> None:
    logits = target_logits(torch.Generator().manual_seed(5))[:2]
    sampling = SamplingParams(temperature=1.0)
    sampler = SplitSampler(TorchSampler(N, V), N, V, Acceptance(True, None))
    bind(sampler, N, sampling)
    rows = SampleRows(
        np.repeat(np.arange(N), 2),
        LENGTH + np.tile(np.arange(2), N),
        2 * np.arange(N),
        [(4,)] * N,
        lambda slot: HISTORY,
    )
    tokens = sampler.sample(rows, logits.repeat(N, 1)).tokens.reshape(N, 2)
    p = shares(logits, sampling)
    assert_distributed(tokens[:, 0].tolist(), p[0])
    assert_distributed(tokens[tokens[:, 0] == 4, 1].tolist(), p[1])


def test_rejection_is_its_definition_row_by_row() -> None:
    """The noise of both is apart from that of draws (domain 0), which drafts are drawn with."""
    rng, n = np.random.default_rng(8), 400
    p_mass, q_mass = (torch.from_numpy(rng.integers(0, 1 << 40, (n, V))) for _ in range(2))
    drafts = rng.integers(0, V, n)
    words = (rng.integers(0, 1 << 32, n), rng.integers(0, 1 << 32, n), rng.integers(3, 99, n), np.zeros(n, np.int64))
    keys = StreamKeys(*(torch.from_numpy(word)[:, None] for word in words))
    nobody = torch.full((n,), -5)
    got = rejection(p_mass, keys, torch.from_numpy(drafts), list(q_mass), nobody).tolist()
    accept, again = (2 * noise_of_all(keys, V, domain).double() + 1 for domain in (1, 2))
    n_kept = 0
    for row, draft in enumerate(drafts.tolist()):
        p, q = (mass[row].double() / mass[row].sum() for mass in (p_mass, q_mass))
        if float(accept[row, draft]) / 2**33 * float(q[draft]) < float(p[draft]):
            n_kept += 1
            expected = draft
        else:
            waits = [
                -math.log(word / 2**33) / more if more > 0 else math.inf
                for word, more in zip(again[row].tolist(), (p - q).tolist(), strict=True)
            ]
            expected = waits.index(min(waits))
        assert got[row] == expected, row
    assert 100 < n_kept < 350


CASES = 60


def relaxed_rows() -> tuple[SampleRows, torch.Tensor, list[np.ndarray]]:
    """Histories in and out of thinking parts; drafts, marks among them, that are often likely."""
    rng = np.random.default_rng(6)
    histories = [rng.choice([1, 2, BEGIN, END, 3, 4], size=rng.integers(1, 6)) for _ in range(CASES)]
    logits = torch.from_numpy(rng.normal(0, 1, (3 * CASES, V)).astype(np.float32).round(1))
    drafts = []
    for i in range(CASES):
        likely = [int(logits[3 * i + j].topk(4).indices[rng.integers(4)]) for j in range(2)]
        drafts.append((likely[0], likely[1]) if i % 5 else (int(rng.choice([BEGIN, END])), likely[1]))
    positions = np.concatenate([len(one) + np.arange(3) for one in histories])
    slots = np.repeat(np.arange(CASES), 3)
    return SampleRows(slots, positions, 3 * np.arange(CASES), drafts, histories.__getitem__), logits, histories


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize(("topk", "delta"), [(1, 0.0), (3, 0.1), (9, 0.3), (2, 1.0)])
def test_relaxed_acceptance_is_its_definition_in_thinking_parts_alone(
    temperature: float, topk: int, delta: float
) -> None:
    rows, logits, histories = relaxed_rows()
    sampling = SamplingParams(temperature=temperature, logprobs=1)
    plain = TorchSampler(CASES, V)
    sampler = SplitSampler(TorchSampler(CASES, V), CASES, V, Acceptance(False, Relaxed(topk, delta, BEGIN, END)))
    for one in (plain, sampler):
        bind(one, CASES, sampling)
    drawn, got = plain.sample(rows, logits), sampler.sample(rows, logits)
    p = (logits.double() / (temperature or 1.0)).softmax(-1)
    n_relaxed = 0
    for row in range(3 * CASES):
        sequence, i = divmod(row, 3)
        expected = int(drawn.tokens[row])
        if i < 2:
            draft, text = rows.drafts[sequence][i], [*histories[sequence].tolist(), *rows.drafts[sequence][:i]]
            marks = [token for token in text if token in (BEGIN, END)]
            order = sorted(range(V), key=lambda token: (-float(p[row, token]), token))
            near = draft in order[:topk] and float(p[row, draft]) >= float(p[row].max()) - delta
            if marks and marks[-1] == BEGIN and near:
                n_relaxed += draft != expected
                expected = draft
        assert int(got.tokens[row]) == expected, (row, rows.drafts[sequence])
        assert got.logprobs[row].token == expected
        if expected == int(drawn.tokens[row]):
            assert got.logprobs[row] == drawn.logprobs[row]
    # The likeliest token is near in any case: a greedy row gives it anyway.
    assert (n_relaxed > 0) == (temperature > 0 or (topk > 1 and delta > 0)), n_relaxed


@pytest.mark.parametrize(
    "acceptance", [(True, None), (False, Relaxed(3, 0.2, BEGIN, END)), (True, Relaxed(3, 0.2, BEGIN, END))]
)
def test_a_sequence_gives_the_same_in_any_company_and_with_either_sampler(acceptance: tuple) -> None:
    rows, logits, _ = relaxed_rows()
    every = [SamplingParams(temperature=0.8, logprobs=2), SamplingParams(temperature=0.0), SamplingParams(top_k=4)]

    def outcome(kind: type, which: list[int]) -> list[Any]:
        sampler = SplitSampler(kind(CASES, V), CASES, V, Acceptance(*acceptance))
        for slot in which:
            sampling = every[slot % 3]
            sampler.bind(SlotInit(slot, slot, (1,), 1, 0, sampling, slot, 0, frozenset(), frozenset(), 100))
        # Every fourth sequence has no drafts.
        counts = [1 if slot % 4 == 0 else 3 for slot in which]
        at = np.concatenate([3 * slot + np.arange(n) for slot, n in zip(which, counts, strict=True)])
        part = SampleRows(
            rows.slots[at], rows.positions[at], np.cumsum([0, *counts[:-1]]),
            [rows.drafts[slot] if n == 3 else () for slot, n in zip(which, counts, strict=True)], rows.history,
        )  # fmt: skip
        got = sampler.sample(part, logits[at])
        return [(int(3 * slot), got.tokens[a : a + n].tolist(), [got.logprobs.get(r) for r in range(a, a + n)])
                for slot, a, n in zip(which, part.first_rows, counts, strict=True)]  # fmt: skip

    together = outcome(TorchSampler, list(range(CASES)))
    assert outcome(NativeSampler, list(range(CASES))) == together
    assert [outcome(TorchSampler, [slot])[0] for slot in range(7)] == together[:7]
    assert outcome(NativeSampler, list(range(CASES))[::-1])[::-1] == together
