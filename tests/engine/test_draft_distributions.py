"""Options that change outputs, in the engine and with every way to draft: rejection sampling keeps the distribution of
whole texts, alone and behind a grammar; relaxed acceptance gives nothing but what its definition allows.

Three letters may come, so that drafts are often right and every text is seen often.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from draft_heads import write_head
from headrace import (
    LLM,
    DraftTargetDecodingConfig,
    EagleDecodingConfig,
    GuidedDecodingParams,
    MTPDecodingConfig,
    NGramDecodingConfig,
    SADecodingConfig,
    SamplingParams,
    UserProvidedDecodingConfig,
)
from headrace.eval import tiny
from mtp_layers import make_llama_layer, write_layer
from tiny_text import write_tokenizer

pytestmark = pytest.mark.slow
N, LENGTH, TEMPERATURE = 900, 4, 0.8
PROMPT = "acbbacabcaacb"
REGEX = "(a[bc]|b[ac]|c[ab])+"
"""No letter in an odd place is the one before it."""
THINK, THOUGHT = "b", "c"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    with torch.no_grad():
        model = tiny.save(tiny.make("llama"), folder)
        tiny.save(tiny.make("llama", num_hidden_layers=1), folder / "small")
    write_tokenizer(folder, 317)
    write_head(folder / "head", folder, draft_vocab=None)
    write_layer(folder / "mtp", model, make_llama_layer(64, 317))
    return folder


def letter_ids(llm: LLM) -> list[int]:
    assert llm.tokenizer is not None
    return [llm.tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "abc"]


def by_user(tokens: list[int], limit: int) -> list[int]:
    """What came before, in turn: often likely, often not."""
    return [tokens[(5 * len(tokens) + i) % len(tokens)] for i in range(limit)]


WAYS: dict[str, Callable[..., Any]] = {
    "eagle3": lambda folder, **more: EagleDecodingConfig(speculative_model=str(folder / "head"), **more),
    "mtp": lambda folder, **more: MTPDecodingConfig(speculative_model=str(folder / "mtp"), **more),
    "draft_model": lambda folder, **more: DraftTargetDecodingConfig(speculative_model=str(folder / "small"), **more),
    "ngram": lambda folder, **more: NGramDecodingConfig(max_matching_ngram_size=1, is_public_pool=False, **more),
    "suffix": lambda folder, **more: SADecodingConfig(min_matching_length=1, **more),
    "user": lambda folder, **more: UserProvidedDecodingConfig(drafter=by_user, **more),
}


@cache
def reference(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def p_of_texts(folder: Path, prompt: list[int], letters: list[int], guided: bool) -> torch.Tensor:
    """[3] * LENGTH: the probability of each text, by the plain model."""
    p = torch.ones((3,) * LENGTH)
    for text in itertools.product(range(3), repeat=LENGTH):
        for i in range(LENGTH):
            ids = torch.tensor([prompt + [letters[index] for index in text[:i]]])
            row = reference(folder)(ids).logits[0, -1, letters] / TEMPERATURE
            if guided and i % 2:
                row[text[i - 1]] = -torch.inf
            p[text] *= row.softmax(0)[text[i]]
    return p


@pytest.mark.parametrize("guided", [False, True], ids=["free", "guided"])
@pytest.mark.parametrize("way", WAYS)
def test_rejection_sampling_keeps_the_distribution_of_texts(folder: Path, way: str, guided: bool) -> None:
    config = WAYS[way](folder, max_draft_len=2, use_rejection_sampling=True)
    with LLM(folder, dtype="float32", num_threads=2, max_batch_size=64, speculative_config=config) as llm:
        assert llm.tokenizer is not None
        letters, prompt = letter_ids(llm), llm.tokenizer.encode(PROMPT)
        forbidden = dict.fromkeys(sorted({*range(317)} - {*letters}), float("-inf"))
        grammar = GuidedDecodingParams(regex=REGEX) if guided else None
        requests = [
            llm.generate_async(
                prompt,
                SamplingParams(
                    max_tokens=LENGTH, temperature=TEMPERATURE, seed=seed, embedding_bias=forbidden,
                    detokenize=False, guided_decoding=grammar,
                ),
            )
            for seed in range(N)
        ]  # fmt: skip
        texts = [tuple(letters.index(token) for token in one.result(timeout=120).outputs[0].token_ids)
                 for one in requests]  # fmt: skip
        seen = llm.get_stats()[-1]["witnesses"]
    assert N / 20 < seen["drafts_accepted"] < seen["drafts_proposed"] - N / 20, seen
    expected = N * p_of_texts(folder, prompt, letters, guided).flatten()
    counts = torch.zeros((3,) * LENGTH)
    for text, count in Counter(texts).items():
        counts[text] = count
    counts = counts.flatten()
    assert counts[expected == 0].sum() == 0
    # Texts that are seldom count together.
    often = expected >= 5
    rest = (counts[~often].sum() - expected[~often].sum()).square() / expected[~often].sum().clamp_min(1)
    chi = ((counts - expected)[often].square() / expected[often]).sum() + rest
    share = float(torch.special.gammaincc(often.sum().double() / 2, chi.double() / 2))
    assert share > 1e-3, (float(chi), int(often.sum()))


@pytest.mark.parametrize("way", WAYS)
def test_relaxed_acceptance_gives_what_is_nearly_as_likely_and_only_while_it_thinks(folder: Path, way: str) -> None:
    topk, delta, length = 2, 0.4, 12
    with LLM(folder, dtype="float32", num_threads=2) as llm:
        letters = letter_ids(llm)
    begin, end = (letters["abc".index(mark)] for mark in (THINK, THOUGHT))
    config = WAYS[way](
        folder, max_draft_len=3, use_relaxed_acceptance_for_thinking=True, relaxed_topk=topk, relaxed_delta=delta,
        begin_thinking_phase_token=begin, end_thinking_phase_token=end,
    )  # fmt: skip
    with LLM(folder, dtype="float32", num_threads=2, speculative_config=config) as llm:
        assert llm.tokenizer is not None
        forbidden = dict.fromkeys(sorted({*range(317)} - {*letters}), float("-inf"))
        sampling = SamplingParams(max_tokens=length, embedding_bias=forbidden, end_id=-1, detokenize=False)
        prompts = [llm.tokenizer.encode("".join(text)) for text in itertools.product("abc", repeat=3)]
        requests = [llm.generate_async(prompt, sampling) for prompt in prompts]
        outputs = [one.result(timeout=120).outputs[0].token_ids for one in requests]
    n_relaxed = 0
    for prompt, output in zip(prompts, outputs, strict=True):
        with torch.no_grad():
            rows = reference(folder)(torch.tensor([prompt + output])).logits[0, len(prompt) - 1 : -1, letters]
        for i, (row, token) in enumerate(zip(rows.softmax(1), output, strict=True)):
            marks = [one for one in prompt + output[:i] if one in (begin, end)]
            thinks = bool(marks) and marks[-1] == begin
            p, top = row[letters.index(token)], row.max()
            if p < top:
                n_relaxed += 1
                assert thinks
                assert int((row > p).sum()) < topk
                assert p >= top - delta - 1e-5
    assert n_relaxed > 5
