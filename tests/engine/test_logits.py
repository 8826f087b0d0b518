"""Logits of prompts and outputs: transformers' own, whatever is drawn from them and however the prompt was computed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headrace import LLM, KvCacheConfig, SamplingParams
from headrace.eval import tiny
from headrace.ops.native.core import is_available

PROMPT = [5, 6, 7, 8] * 10
ASKED = {"return_context_logits": True, "return_generation_logits": True, "max_tokens": 6, "end_id": -1}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, LLM]]:
    with torch.no_grad():
        model = tiny.make("llama")
    folder: Path = tiny.save(model, tmp_path_factory.mktemp("llama"))
    options = {"dtype": "float32", "num_threads": 1, "max_num_tokens": 24, "skip_tokenizer_init": True}
    with LLM(folder, kv_cache_config=KvCacheConfig(max_tokens=1024), **options) as llm:
        yield model, llm


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.0, "n": 2, "seed": 3, "frequency_penalty": 0.5},
        {"temperature": 1.0, "n": 2, "best_of": 4, "seed": 3},
        {"use_beam_search": True, "best_of": 3, "n": 2},
    ],
)
@pytest.mark.parametrize("prompt", [PROMPT, [9]])
def test_they_are_transformers(both: tuple[Any, LLM], prompt: list[int], options: dict[str, Any]) -> None:
    model, llm = both
    output = llm.generate(prompt, SamplingParams(**ASKED, **options), use_tqdm=False)
    for one in output.outputs:
        with torch.no_grad():
            reference = model(torch.tensor([prompt + one.token_ids])).logits[0].numpy()
        assert output.context_logits is not None
        assert one.generation_logits is not None
        assert one.generation_logits.shape == (one.length, model.config.vocab_size)
        np.testing.assert_allclose(output.context_logits, reference[: len(prompt)], atol=2e-3)
        np.testing.assert_allclose(one.generation_logits, reference[len(prompt) - 1 : -1], atol=2e-3)
        noise = 0.0 if is_available() else 2e-3
        np.testing.assert_allclose(output.context_logits[-1], one.generation_logits[0], rtol=0, atol=noise)


def test_they_come_as_they_are_made_and_only_if_asked_for(both: tuple[Any, LLM]) -> None:
    llm = both[1]
    whole = llm.generate(PROMPT, SamplingParams(**ASKED), use_tqdm=False)
    rows = 0
    for output in llm.generate_async(PROMPT, SamplingParams(**ASKED), streaming=True):
        rows = len(output.outputs[0].generation_logits) if output.outputs[0].length else 0
        assert rows == output.outputs[0].length
    assert rows == 6
    np.testing.assert_array_equal(output.context_logits, whole.context_logits)
    plain = llm.generate(PROMPT, SamplingParams(max_tokens=6, end_id=-1), use_tqdm=False)
    assert plain.outputs[0].token_ids == whole.outputs[0].token_ids
    assert plain.context_logits is None
    assert plain.outputs[0].generation_logits is None
