"""Requests with random options, and rows of logits for them, from a seed."""

from __future__ import annotations

import numpy as np
from sampler_contract import Case, sampling_params, slot_init

from headrace.core.sampling_params import SamplingParams
from headrace.sampling import SampleOutcome

BATCH = 8


def options(generator: np.random.Generator, vocab_size: int) -> SamplingParams:
    """Any mix of options; each is often absent."""
    fields: dict[str, object] = {}

    def maybe(name: str, values: list, share: float = 0.5) -> None:
        if generator.random() < share:
            fields[name] = values[generator.integers(len(values))]

    maybe("temperature", [0.0, 1e-40, 0.3, 1.0, 1.7, 50.0])
    if generator.random() < 0.15:
        fields |= {"use_beam_search": True, "best_of": int(generator.choice([1, 4, 30]))}
    else:
        maybe("top_k", [0, 1, 2, 5, 40, 300, vocab_size // 2, vocab_size])
        maybe("top_p", [1e-9, 0.3, 0.9, 0.95, 0.999, 1.0 - 2.0**-53, 1.0])
        maybe("top_p_decay", [0.5, 0.9, 1.0], 0.3)
        maybe("top_p_min", [1e-6, 0.4, 1.0], 0.2)
        maybe("min_p", [0.0, 1e-13, 0.02, 0.5, 1.0], 0.3)
    maybe("no_repeat_ngram_size", [1, 2, 3, 5], 0.3)
    maybe("repetition_penalty", [0.5, 1.0, 1.3])
    maybe("presence_penalty", [-1.0, 0.7])
    maybe("frequency_penalty", [-0.3, 0.4])
    maybe("min_tokens", [0, 2, 9])
    maybe("logprobs", [0, 1, 4, 20, 300])
    maybe("logprobs_mode", ["raw", "processed"])
    if "top_p_decay" in fields:
        maybe("top_p_reset_ids", list(range(min(vocab_size, 8))))
    if generator.random() < 0.3:
        biases = generator.choice([-np.inf, -2.0, 0.1, 3.0], 4).tolist()
        fields["embedding_bias"] = dict(zip(generator.integers(0, vocab_size, 4).tolist(), biases, strict=True))
    if generator.random() < 0.3:
        lengths = generator.integers(1, 4, 3)
        fields["bad_token_ids"] = [generator.integers(0, vocab_size, n).tolist() for n in lengths]
    return sampling_params(**fields)


def logits(generator: np.random.Generator, n: int, vocab_size: int) -> np.ndarray:
    """Nearly flat, plain, tied, peaked, half forbidden, or broken: float32 [n, vocab_size]."""
    kind = generator.integers(20)
    x = generator.normal(0, [0.02, 1.0, 4.0, 10.0][kind % 4], (n, vocab_size)).astype(np.float32)
    if kind in (2, 6, 10):
        x = np.round(x, 1)
    if kind in (3, 7):
        x[generator.random(x.shape) < 0.5] = -np.inf
    if kind == 19:
        x[:, generator.integers(vocab_size)] = generator.choice([np.nan, np.inf])
    return x


def allowed(generator: np.random.Generator, n: int, vocab_size: int) -> tuple[frozenset[int] | None, ...] | None:
    """Masks of nearly all tokens, of half of them, of few or of none; for the rows of every fourth sequence."""
    if generator.random() < 0.75:
        return None
    shares = [generator.choice([0.999, 0.5, 3.0 / vocab_size, 0.0]) for _ in range(n)]
    masks = [frozenset(np.flatnonzero(generator.random(vocab_size) < share).tolist()) for share in shares]
    return tuple(mask if generator.random() < 0.8 else None for mask in masks)


def case(generator: np.random.Generator, slot: int, vocab_size: int) -> Case:
    history = generator.integers(0, vocab_size, generator.integers(1, 30)).tolist()
    drafts = tuple(generator.integers(0, vocab_size, generator.integers(0, 3)).tolist())
    init = slot_init(
        slot,
        options(generator, vocab_size),
        n_prompt=int(generator.integers(1, len(history) + 1)),
        seed=int(generator.integers(0, 2**63)),
        output_index=int(generator.integers(4)),
    )
    rows = logits(generator, 1 + len(drafts), vocab_size)
    return Case(init, history, drafts, rows, allowed(generator, len(rows), vocab_size))


def batches(n_cases: int, vocab_size: int, seed: int) -> list[list[Case]]:
    generator = np.random.default_rng(seed)
    return [[case(generator, slot, vocab_size) for slot in range(BATCH)] for _ in range(n_cases // BATCH)]


def facts(outcome: SampleOutcome) -> tuple:
    """All of an outcome. Floats compare as floats: there is no NaN among logprobs."""
    return outcome.tokens.tolist(), outcome.errors, outcome.n_changed, outcome.logprobs
