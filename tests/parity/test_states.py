"""Recurrent states in the cache: a shared beginning is really not computed again, and drafts really count."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from headrace import LLM, ConfigError, KvCacheConfig, NGramDecodingConfig, SamplingParams
from headrace.eval.tiny import make, random_prompts, save

VARIANTS = ("nemotron-h-experts", "qwen3-next")
"""Every family with recurrent layers."""

PARAMS = SamplingParams(max_tokens=12, ignore_eos=True, logprobs=1, detokenize=False)
_ARGS = {"dtype": "float32", "skip_tokenizer_init": True, "num_threads": 1, "max_seq_len": 640}


@pytest.fixture(scope="module", params=VARIANTS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model with room for long prompts."""
    with torch.no_grad():
        yield save(make(request.param, max_position_embeddings=1024), tmp_path_factory.mktemp(request.param))


def _generate(llm: LLM, prompt: list[int]) -> tuple[list[int], list[float]]:
    output = llm.generate([prompt], PARAMS, use_tqdm=False)[0].outputs[0]
    return output.token_ids, [
        entry[token].logprob for token, entry in zip(output.token_ids, output.logprobs, strict=True)
    ]


def test_the_second_of_two_prompts_with_500_tokens_in_common_computes_few_of_them(folder: Path) -> None:
    (prefix,) = random_prompts(317, [500])
    prompts = [[*prefix, *own] for own in random_prompts(317, [40, 23])]
    alone = []
    for prompt in prompts:
        with LLM(str(folder), kv_cache_config=KvCacheConfig(enable_block_reuse=False), **_ARGS) as llm:
            alone.append(_generate(llm, prompt))
    with LLM(str(folder), **_ARGS) as llm:
        assert _generate(llm, prompts[0]) == alone[0]
        assert llm.get_stats()[-1]["witnesses"]["cached_tokens.device"] == 0
        assert _generate(llm, prompts[1]) == alone[1]
        found = llm.get_stats()[-1]["witnesses"]["cached_tokens.device"]
    assert 500 - found < 64


def test_drafts_are_accepted_and_change_nothing(folder: Path) -> None:
    """A prompt that repeats itself, and a model that says one thing often enough for look-ups to be right."""
    prompts = [random_prompts(317, [9])[0] * 8, random_prompts(317, [70])[0]]
    params = SamplingParams(max_tokens=90, ignore_eos=True, logprobs=1, detokenize=False)

    def run(**args: object) -> tuple[list[list[int]], list[list[float]], dict[str, int]]:
        with LLM(str(folder), **_ARGS, **args) as llm:
            outputs = [one.outputs[0] for one in llm.generate(prompts, params, use_tqdm=False)]
            logprobs = [[e[t].logprob for t, e in zip(o.token_ids, o.logprobs, strict=True)] for o in outputs]
            return [o.token_ids for o in outputs], logprobs, llm.get_stats()[-1]["witnesses"]

    plain = run()
    drafted = run(speculative_config=NGramDecodingConfig(max_draft_len=4))
    assert drafted[:2] == plain[:2]
    assert drafted[2]["drafts_accepted"] > 0
    assert drafted[2]["drafts_proposed"] > drafted[2]["drafts_accepted"]


def test_a_longer_interval_keeps_fewer_states_and_changes_no_output(folder: Path) -> None:
    (prefix,) = random_prompts(317, [500])
    prompts = [[*prefix, *own] for own in random_prompts(317, [40, 23])]
    found = {}
    for interval in (32, 256):
        cache = KvCacheConfig(state_checkpoint_interval=interval)
        with LLM(str(folder), kv_cache_config=cache, **_ARGS) as llm:
            answers = [_generate(llm, prompt) for prompt in prompts]
            found[interval] = answers, llm.get_stats()[-1]["witnesses"]["cached_tokens.device"]
    assert found[32][0] == found[256][0]
    assert (found[32][1], found[256][1]) == (480, 256)


def test_the_interval_is_refused_where_there_are_no_states(tmp_path: Path) -> None:
    with torch.no_grad():
        save(make("llama"), tmp_path)
    with pytest.raises(ConfigError, match="state_checkpoint_interval=64: this model has no recurrent states"):
        LLM(tmp_path, kv_cache_config=KvCacheConfig(state_checkpoint_interval=64), skip_tokenizer_init=True)
    with pytest.raises(ConfigError, match=r"state_checkpoint_interval.*multiple of 32"):
        KvCacheConfig(state_checkpoint_interval=48)


def test_partial_reuse_is_refused_with_the_reason(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"enable_partial_reuse=True: a recurrent state .* leave it out"):
        LLM(str(folder), kv_cache_config=KvCacheConfig(enable_partial_reuse=True), **_ARGS)
    with LLM(str(folder), **_ARGS) as llm:
        assert list(llm.effective_config["absent_features"]) == ["partial_reuse"]
