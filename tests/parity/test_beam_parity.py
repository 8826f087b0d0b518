"""Beam search against transformers: outputs, their order and their scores, where both mean the same by it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from headrace import LLM, KvCacheConfig, SamplingParams
from headrace.eval import tiny

PROMPTS = ([5, 6, 7, 8, 9, 10, 11] * 6, [44, 3, 120], [9])

OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "longer-is-better": ({"length_penalty": 0.6}, {}),
    "shorter-is-better": ({"length_penalty": -1.0, "early_stopping": 0}, {"early_stopping": False}),
    "heuristic": ({"early_stopping": 0, "length_penalty": 0.7}, {"early_stopping": False}),
    "never-early": ({"early_stopping": 2, "length_penalty": 0.8}, {"early_stopping": "never"}),
    "several-ends": ({"stop_token_ids": [11, 12, 13, 14, 15]}, {"eos_token_id": [2, 11, 12, 13, 14, 15]}),
    "one-long-output": ({"ignore_eos": True, "max_tokens": 60}, {"eos_token_id": 400}),
}
"""By name: options of SamplingParams, and of ``generate`` where they are spelled otherwise."""


@pytest.fixture(scope="module", params=["llama", "gemma3-untied-window-40"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    with torch.no_grad():
        model = tiny.make(request.param)
        # Ends that are likely: otherwise every output has the same length, and nothing says how ends are treated.
        model.get_output_embeddings().weight[2:16] *= 2
    folder = tiny.save(model, tmp_path_factory.mktemp(request.param))
    cache = KvCacheConfig(max_tokens=2048)
    with LLM(folder, dtype="float32", num_threads=1, kv_cache_config=cache, skip_tokenizer_init=True) as llm:
        yield model, llm


@pytest.mark.parametrize("name", OPTIONS)
def test_equals_transformers(name: str, both: tuple[Any, LLM]) -> None:
    model, llm = both
    ours, theirs = OPTIONS[name]
    width, n, max_tokens = 5, 5, ours.get("max_tokens", 12)
    params = SamplingParams(
        **{"use_beam_search": True, "best_of": width, "n": n, "max_tokens": max_tokens, "early_stopping": 1, **ours}
    )
    settings = {
        "num_beams": width,
        "num_return_sequences": n,
        "max_new_tokens": max_tokens,
        "early_stopping": True,
        "length_penalty": params.length_penalty or 0.0,
        "eos_token_id": 2,
        "do_sample": False,
        **theirs,
    }
    requests = [llm.generate_async(prompt, params) for prompt in PROMPTS]
    lengths = set()
    for prompt, request in zip(PROMPTS, requests, strict=True):
        with torch.no_grad():
            reference = model.generate(
                torch.tensor([prompt]), output_scores=True, return_dict_in_generate=True, **settings
            )
        for output, sequence, score in zip(
            request.result(60).outputs, reference.sequences, reference.sequences_scores, strict=True
        ):
            tokens = sequence[len(prompt) :].tolist()
            assert output.token_ids == tokens[: output.length]
            assert set(tokens[output.length :]) <= {0, 2}, "only padding is left out"
            assert output.cumulative_logprob is not None
            mine = output.cumulative_logprob / output.length ** (params.length_penalty or 0.0)
            assert mine == pytest.approx(float(score), rel=2e-4)
            lengths.add(output.length)
    assert len(lengths) > 1 or name == "one-long-output", "outputs of one length say nothing about ends"
