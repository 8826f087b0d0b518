"""Beam search and best_of through the Python API and over HTTP: what comes back, and when."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from headrace import LLM, GuidedDecodingParams, KvCacheConfig, SamplingParams
from headrace.eval import tiny
from headrace.ops.native.core import is_available, reason
from tiny_text import write_tokenizer

PROMPT = [5, 6, 7, 8] * 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.no_grad():
        model = tiny.make("llama")
    folder = tiny.save(model, tmp_path_factory.mktemp("llama"))
    write_tokenizer(folder, model.config.vocab_size)
    return folder


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    cache = KvCacheConfig(max_tokens=1024)
    with LLM(folder, dtype="float32", num_threads=1, kv_cache_config=cache, max_batch_size=8) as llm:
        yield llm
        llm.check_integrity()


def beams(**options: object) -> SamplingParams:
    return SamplingParams(**{"use_beam_search": True, "best_of": 4, "n": 4, "max_tokens": 10, "end_id": 2, **options})


def facts(outputs: list) -> list:
    return [(one.token_ids, one.text, one.cumulative_logprob, one.finish_reason, one.stop_reason) for one in outputs]


def test_a_stream_brings_every_output_in_one_piece(llm: LLM) -> None:
    whole = llm.generate(PROMPT, beams(logprobs=1), use_tqdm=False)
    steps = [
        [list(one.token_ids_diff) for one in output.outputs]
        for output in llm.generate_async(PROMPT, beams(logprobs=1), streaming=True)
    ]
    assert [one for one in steps if any(one)] == [[one.token_ids for one in whole.outputs]]
    sums = [one.cumulative_logprob for one in whole.outputs]
    assert sums == sorted(sums, reverse=True)
    assert [len(one.logprobs) for one in whole.outputs] == [one.length for one in whole.outputs]


@pytest.mark.skipif(not is_available(), reason=f"the reference operators promise no bits: {reason()}")
def test_raw_logprobs_are_of_the_models_own_logits(llm: LLM) -> None:
    options = {"temperature": 0.7, "frequency_penalty": 0.5, "logprobs": 2}
    raw = llm.generate(PROMPT, beams(**options), use_tqdm=False).outputs
    processed = llm.generate(PROMPT, beams(**options, logprobs_mode="processed"), use_tqdm=False).outputs
    assert [one.token_ids for one in raw] == [one.token_ids for one in processed]
    for one, other in zip(raw, processed, strict=True):
        prompt = PROMPT + one.token_ids
        asked = llm.generate(prompt, SamplingParams(max_tokens=1, prompt_logprobs=2), use_tqdm=False).outputs[0]
        assert one.logprobs == asked.prompt_logprobs[len(PROMPT) :]
        chosen = [entry[token].logprob for token, entry in zip(other.token_ids, other.logprobs, strict=True)]
        assert sum(chosen) == pytest.approx(one.cumulative_logprob, abs=1e-9)


@pytest.mark.skipif(not is_available(), reason=reason())
def test_torch_and_native_sampler_give_the_same_bits(llm: LLM, folder: Path) -> None:
    options = [
        beams(logprobs=3, repetition_penalty=1.2, min_tokens=3),
        beams(beam_search_diversity_rate=0.8, length_penalty=1.0, early_stopping=0),
        beams(best_of=None, beam_width_array=(2, 6, 4), n=3, temperature=0.8),
    ]
    cache = KvCacheConfig(max_tokens=1024)
    with LLM(folder, dtype="float32", num_threads=1, kv_cache_config=cache, sampler_type="TorchSampler") as other:
        for params in options:
            mine, theirs = (one.generate(PROMPT, params, use_tqdm=False).outputs for one in (llm, other))
            assert facts(mine) == facts(theirs)
            assert [one.logprobs for one in mine] == [one.logprobs for one in theirs]


def test_a_stop_string_ends_a_beam_like_a_stop_token(llm: LLM) -> None:
    """Of one-letter stops each is a token: the search is that with their ids, and only the texts differ."""
    letters = "aeiou"
    ids = {letter: llm.tokenizer.encode(letter, add_special_tokens=False) for letter in letters}
    assert all(len(tokens) == 1 for tokens in ids.values())
    by_text = llm.generate(PROMPT, beams(stop=list(letters), max_tokens=20), use_tqdm=False).outputs
    stop_ids = [token for (token,) in ids.values()]
    by_id = llm.generate(PROMPT, beams(stop_token_ids=stop_ids, max_tokens=20), use_tqdm=False).outputs
    assert [one.token_ids for one in by_text] == [one.token_ids for one in by_id]
    assert [one.cumulative_logprob for one in by_text] == [one.cumulative_logprob for one in by_id]
    reasons = [one.stop_reason for one in by_text]
    assert [None if one is None else ids[one][0] for one in reasons] == [one.stop_reason for one in by_id]
    assert any(reasons), "nothing was stopped"


def test_fewer_texts_than_outputs(llm: LLM) -> None:
    """Masks leave two texts: the others come back empty."""
    guided = GuidedDecodingParams(choice=["ab", "cd"])
    outputs = llm.generate(PROMPT, beams(guided_decoding=guided), use_tqdm=False).outputs
    assert sorted(one.text for one in outputs) == ["", "", "ab", "cd"]
    assert [one.cumulative_logprob == -math.inf for one in outputs] == [False, False, True, True]


def test_what_is_cut_short_brings_the_best_so_far(llm: LLM) -> None:
    request = llm.generate_async(PROMPT, beams(max_tokens=200, end_id=-1), timeout=0.05)
    outputs = request.result(60).outputs
    assert {one.finish_reason for one in outputs} == {"timeout"}
    assert len({one.length for one in outputs}) == 1
    assert outputs[0].length < 200
    sums = [one.cumulative_logprob for one in outputs]
    assert sums == sorted(sums, reverse=True)


def test_best_of_returns_the_likeliest_of_what_n_draws(llm: LLM) -> None:
    options = {"temperature": 1.0, "seed": 5, "max_tokens": 12}
    drawn = llm.generate(PROMPT, SamplingParams(n=5, logprobs=0, **options), use_tqdm=False).outputs
    best = llm.generate(PROMPT, SamplingParams(n=2, best_of=5, **options), use_tqdm=False).outputs
    wanted = sorted(drawn, key=lambda one: -one.cumulative_logprob)[:2]
    assert facts(best) == facts(wanted)
    assert [one.index for one in best] == [0, 1]
    assert [one.logprobs for one in best] == [[], []], "they were not asked for"
    steps = [
        [list(one.token_ids_diff) for one in output.outputs]
        for output in llm.generate_async(PROMPT, SamplingParams(n=2, best_of=5, **options), streaming=True)
    ]
    assert steps == [[one.token_ids for one in wanted]]


def test_one_of_best_of_that_fails_ends_the_request(llm: LLM) -> None:
    def fail(req_id: int, logits: torch.Tensor, token_ids: list, stream_ptr: None, client_id: int) -> None:
        if len(token_ids[0]) > len(PROMPT) + 2:
            raise ArithmeticError("no more")

    for params in (SamplingParams(temperature=1.0, best_of=3, logits_processor=fail), beams(logits_processor=fail)):
        with pytest.raises(Exception, match="no more"):
            llm.generate(PROMPT, params, use_tqdm=False)
