"""All that stands between logits and tokens, with torch's sampler in it and with the native one: the same bits.

Each random set of options goes through processors, grammars, acceptance rules and sampler as the worker puts them
together; one with beams is searched to its end.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from random_cases import BATCH, facts, logits, options
from sampler_contract import EOS, NEEDS_CORE, Case, run, sampling_params, slot_init

from headrace.core.errors import RequestError
from headrace.core.processors import BatchedLogitsProcessor
from headrace.core.request import Request
from headrace.core.sampling_params import SamplingParams
from headrace.runner.beams import candidates_of
from headrace.sampling import (
    NO_TOKEN,
    Acceptance,
    GuidedSampler,
    NativeSampler,
    ProcessingSampler,
    Relaxed,
    Remembering,
    Sampler,
    SampleRows,
    SplitSampler,
    TorchSampler,
)
from headrace.sched.beam_search import BeamSearch

pytestmark = NEEDS_CORE
V = 24
RULES: tuple[tuple[bool, Relaxed | None] | None, ...] = (
    None,
    (True, None),
    (False, Relaxed(3, 0.2, 7, 8)),
    (True, Relaxed(6, 0.5, 7, 8)),
)
"""How drafts may be kept: as they are drawn, or by an ``Acceptance`` of these."""


class RandomGrammar:
    """Allows what a seed says after each text; after some texts it cannot go on at all."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._taken: list[int] = []

    def matcher(self) -> RandomGrammar:
        return RandomGrammar(self._seed)

    def allowed(self) -> np.ndarray:
        generator = np.random.default_rng([self._seed, *self._taken])
        if generator.random() < 0.02:
            raise RequestError("guided_decoding: the grammar has come to its limit")
        return generator.random(V) < generator.choice([0.95, 0.5, 0.1])

    def consume(self, token: int) -> bool:
        if not self.allowed()[token]:
            return False
        self._taken.append(token)
        return True

    def rollback(self, n_tokens: int) -> None:
        self._taken = self._taken[: len(self._taken) - n_tokens]

    def fill(self, words: np.ndarray) -> bool:
        bits = np.zeros(32 * len(words), bool)
        bits[:V] = self.allowed()
        words[:] = np.packbits(bits, bitorder="little").view("<u4")
        return len(self._taken) % 3 == 2

    def walk(self, generator: np.random.Generator, n_tokens: int) -> list[int]:
        """Up to so many tokens that it allows."""
        taken: list[int] = []
        try:
            while len(taken) < n_tokens and len(choices := np.flatnonzero(self.allowed())):
                taken.append(int(generator.choice(choices)))
                self.consume(taken[-1])
        except RequestError:
            pass
        return taken


class Nudge(BatchedLogitsProcessor):
    """Changes, forbids or breaks something, as the last tokens say."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def one(self, req_id: int, row: torch.Tensor, token_ids: list[list[int]], *rest: object) -> None:
        generator = np.random.default_rng([self._seed, *token_ids[0][-3:]])
        kind = generator.integers(40)
        if kind == 0:
            raise ValueError(f"not after {token_ids[0][-1]}")
        if kind == 1:
            row[0, 0, generator.integers(V)] = float(generator.choice([np.nan, np.inf]))
        row[0, 0, generator.integers(V)] += float(generator.normal(0, 3))
        row[0, 0, generator.integers(V)] = -np.inf

    def __call__(self, req_ids: Any, rows: Any, token_ids: Any, stream_ptr: Any, client_ids: Any) -> None:
        for parts in zip(req_ids, rows, token_ids, strict=True):
            self.one(*parts)


def stack(kind: type, acceptance: Acceptance | None, seed: int) -> Sampler:
    """As the worker puts it together."""
    sampler = kind(BATCH, V)
    if acceptance is not None:
        sampler = SplitSampler(sampler, BATCH, V, acceptance)
    return ProcessingSampler(GuidedSampler(sampler, V), Nudge(seed))


def case(generator: np.random.Generator, slot: int) -> Case:
    sampling = options(generator, V)
    while sampling.use_beam_search:
        sampling = options(generator, V)
    sampling = with_processors(generator, sampling)
    prompt = generator.integers(0, V, generator.integers(1, 20)).tolist()
    output = generator.integers(0, V, generator.integers(0, 12)).tolist()
    drafts = generator.integers(0, V, generator.integers(0, 4)).tolist()
    grammar = RandomGrammar(int(generator.integers(1 << 30))) if generator.random() < 0.3 else None
    if grammar is not None:
        follower = grammar.matcher()
        output = follower.walk(generator, len(output))
        drafts = (follower.walk(generator, int(generator.integers(4))) + drafts)[: len(drafts)]
    init = slot_init(
        slot, sampling, n_prompt=len(prompt), seed=int(generator.integers(0, 2**63)),
        output_index=int(generator.integers(4)),
    )  # fmt: skip
    rows = logits(generator, 1 + len(drafts), V)
    return Case(replace(init, grammar=grammar), prompt + output, tuple(drafts), rows)


def with_processors(generator: np.random.Generator, sampling: SamplingParams) -> SamplingParams:
    own = tuple(Nudge(int(seed)).one for seed in generator.integers(1 << 30, size=generator.choice([0, 0, 0, 1, 2])))
    batched = bool(generator.random() < 0.2)
    return sampling.model_copy(update={"logits_processor": own or None, "apply_batched_logits_processor": batched})


def drawn_drafts(cases: list[Case], acceptance: Acceptance, generator: np.random.Generator) -> list[Case]:
    """The drafts of half of the sequences are drawn, from logits of their own, by a sampler that notes from what."""
    drafter, drawn = TorchSampler(BATCH, V, Remembering(acceptance.board)), []
    for one in cases:
        drafter.bind(one.init)
        drafts: list[int] = []
        n_drafts = len(one.drafts) if generator.random() < 0.5 else 0
        while len(drafts) < n_drafts:
            history = np.array([*one.history, *drafts], np.int32)
            rows = SampleRows.one_each(np.array([one.init.slot]), np.array([len(history)]), lambda slot, h=history: h)
            token = int(drafter.sample(rows, torch.from_numpy(logits(generator, 1, V))).tokens[0])
            if token == NO_TOKEN:
                break
            drafts.append(token)
        drawn.append(replace(one, drafts=tuple(drafts), logits=one.logits[: 1 + len(drafts)]) if drafts else one)
    return drawn


def outcome(kind: type, cases: list[Case], rule: tuple[bool, Relaxed | None] | None, seed: int) -> tuple:
    acceptance = None if rule is None else Acceptance(*rule)
    if acceptance is not None:
        cases = drawn_drafts(cases, acceptance, np.random.default_rng(seed))
    got = run(stack(kind, acceptance, seed), cases)
    return facts(got), got.n_masked, got.n_processed


def beams(generator: np.random.Generator) -> SamplingParams:
    """Random options of beam search, over any mix of the others."""
    sampling = options(generator, V)
    kept = {
        name: getattr(sampling, name)
        for name in ("no_repeat_ngram_size", "repetition_penalty", "presence_penalty", "frequency_penalty",
                     "min_tokens", "logprobs", "logprobs_mode", "embedding_bias", "bad_token_ids", "temperature")
    }  # fmt: skip
    widths = generator.integers(1, 6, generator.integers(1, 4)).tolist()
    width = {"beam_width_array": widths} if generator.random() < 0.4 else {"best_of": max(widths)}
    return sampling_params(
        **kept,
        **width,
        use_beam_search=True,
        n=int(generator.integers(1, max(widths) + 1)),
        beam_search_diversity_rate=generator.choice([None, 0.0, 0.7, -0.4]),
        length_penalty=generator.choice([None, 0.0, 1.0, -1.5]),
        early_stopping=generator.choice([None, 0, 1, 2]),
        stop_token_ids=generator.integers(0, V, generator.integers(0, 2)).tolist(),
    )


def search(kind: type, sampling: SamplingParams, seed: int) -> Any:
    """All that a request with beams gives, or the error that ends it."""
    generator = np.random.default_rng(seed)
    prompt = tuple(generator.integers(0, V, 5).tolist())
    grammar = RandomGrammar(seed) if generator.random() < 0.2 else None
    request = Request(0, prompt, sampling, seed, 0.0, frozenset({EOS}), grammar=grammar)
    found = BeamSearch(request, len(prompt) + 5)
    texts: list[tuple[int, ...]] = [()]
    while not found.done:
        cases = []
        for slot, text in enumerate(texts):
            init = slot_init(slot, sampling, n_prompt=len(prompt), seed=seed)
            init = replace(init, tokens=prompt + text, grammar=grammar, n_candidates=found.n_candidates)
            rows = logits(np.random.default_rng([seed, *text]), 1, V)
            rows[~(rows < np.inf)] = 0.0  # a broken row ends a search, and most would have one
            cases.append(Case(init, [*prompt, *text], (), rows))
        sampler = stack(kind, None, seed)
        got = run(sampler, cases)
        if got.errors:
            return got.errors
        candidates = [
            candidates_of(one.init, got.logprobs[row], torch.from_numpy(one.logits[0]), sampler)
            for row, one in enumerate(cases)
        ]
        errors = [str(one) for one in candidates if isinstance(one, RequestError)]
        if errors:
            return errors
        texts = [(*texts[move.source], move.token) for move in found.advance(candidates)]
    ends = found.best(sampling.beam_width)
    return [(end.text.tokens(), end.text.cumulative, end.score, end.text.logprobs(), end.finish, end.stop_reason)
            for end in ends]  # fmt: skip


def check(n_sets: int, seed: int) -> Counter[str]:
    """Compares the outcomes of so many option sets, every eighth of them with beams; what there was to compare."""
    generator, seen = np.random.default_rng(seed), Counter[str]()
    for i in range(n_sets // BATCH):
        cases = [case(generator, slot) for slot in range(BATCH - 1)]
        rule = RULES[i % len(RULES)]
        expected = outcome(TorchSampler, cases, rule, seed + i)
        assert outcome(NativeSampler, cases, rule, seed + i) == expected, [one.init.sampling for one in cases]
        sampling = with_processors(generator, beams(generator))
        texts = search(TorchSampler, sampling, seed + i)
        assert search(NativeSampler, sampling, seed + i) == texts, sampling
        (tokens, errors, changed, logprobs), masked, processed = expected
        seen += Counter(sets=BATCH, rows=len(tokens), errors=len(errors), changed=changed, masked=masked)
        seen += Counter(processed=processed, logprobs=len(logprobs), searches=1, texts=len(texts))
        seen["errors of searches"] += isinstance(texts, dict) or isinstance(texts[0], str)
        seen[f"rule {RULES.index(rule)}"] += 1
    print(dict(seen))
    return seen


def test_samplers_agree() -> None:
    assert min(check(240, seed=1).values()) > 0


@pytest.mark.slow
def test_samplers_agree_at_length() -> None:
    assert min(check(2_000, seed=2).values()) > 10


@pytest.mark.full
def test_samplers_agree_over_ten_thousand_sets_of_options() -> None:
    seen = check(10_000, seed=3)
    assert seen["sets"] == 10_000
    assert min(seen.values()) > 50, seen
