"""A few features together on the built-in models, and all of them: real weights, real text, full-size layers."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from headrace.tokenizer.load import load_tokenizer
from headrace.weights.resolve import resolve_model
from pairs import scenarios
from pairs.cases import everything
from pairs.equality import assert_acted, assert_equal
from pairs.scenarios import Finished, Work, reference, with_features

pytestmark = [pytest.mark.real, pytest.mark.slow]

MODELS = ("smollm2", "gemma3-270m")


def _all_but_guided(turn: int) -> tuple[str, ...]:
    """A grammar ends with an end token, and these outputs go on beyond it."""
    return tuple(name for name in everything("llama", turn) if name != "guided")


SETS = (
    ("kv_reuse", "ngram"),
    ("chunked_prefill", "preemption"),
    ("batching", "prompt_logprobs"),
    _all_but_guided(0),
    _all_but_guided(2),
)
TOLERANCE = 1e-3
"""On logprobs of fp32 reference operators, 18 and 30 layers deep."""

TIGHT = 160
"""Tokens of a cache that holds little more than one request."""

LICENSE = Path(__file__).parents[2] / "LICENSE"
QUESTIONS = (" In other words,", " one two three one two three one two three", " Therefore", " Das heisst:")


@cache
def _work(model: str) -> Work:
    """Eight pieces of prose with the same beginning. They end just below the border of a cache block, so that all of
    them soon need another: too little cache is felt within a few tokens."""
    tokenizer = load_tokenizer(resolve_model(model).path)
    prose = tokenizer.encode(LICENSE.read_text(), add_special_tokens=True)
    questions = [tokenizer.encode(question, add_special_tokens=False) for question in QUESTIONS]
    prompts = [prose[: length - len(question)] + question for length in (62, 95) for question in questions]
    return Work(prompts, max_tokens=8, ends={"ignore_eos": True}, tight_cache_tokens=TIGHT)


@cache
def _plain(model: str, shaped_by: frozenset[str]) -> Finished:
    return scenarios.run(model, reference(shaped_by), _work(model))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("names", SETS, ids=lambda names: "everything" if len(names) > 2 else "+".join(names))
def test_equals_the_plain_run(names: tuple[str, ...], model: str) -> None:
    plain = _plain(model, frozenset(filter(scenarios.changes_output, names)))
    got = scenarios.run(model, with_features(names), _work(model), plain)
    assert_acted(got, names)
    assert_equal(got, plain, TOLERANCE)
