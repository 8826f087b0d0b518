"""Keys and values that are found in the cache are as good as computed ones, in every family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from headrace import LLM, SamplingParams
from headrace.eval.tiny import random_prompts

VARIANTS = (
    "llama", "qwen2-sliding", "qwen3", "gemma3", "mistral-sliding", "phi3-sliding-mha", "phi3-longrope-long",
    "nemotron", "exaone4", "nemotron-h-experts", "qwen3-next", "decilm", "deepseek-v3",
)  # fmt: skip
"""Every family; of two, every layer slides."""


def assert_greedy(model: PreTrainedModel, prompts: Sequence[list[int]], outputs: Sequence[list[int]]) -> None:
    for prompt, output in zip(prompts, outputs, strict=True):
        expected = model(torch.tensor([prompt + output])).logits[0, len(prompt) - 1 : -1].argmax(-1)
        assert expected.tolist() == output


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_second_turn_finds_the_first_one_and_goes_on_from_it(
    variant: str, references: Callable[[str], tuple[PreTrainedModel, Path]]
) -> None:
    model, folder = references(variant)
    params = SamplingParams(max_tokens=20, ignore_eos=True, detokenize=False)
    llm = LLM(model=str(folder), dtype="float32", skip_tokenizer_init=True, max_num_tokens=64, num_threads=1)

    def generate(prompts: Sequence[list[int]]) -> list[list[int]]:
        return [list(output.outputs[0].token_ids) for output in llm.generate(prompts, params, use_tqdm=False)]

    try:
        first = random_prompts(model.config.vocab_size, [40, 70, 180])
        answers = generate(first)
        assert_greedy(model, first, answers)
        assert llm.get_stats()[-1]["witnesses"]["cached_tokens.device"] == 0
        # One turn goes on after the answer, one leaves in the middle of it, and one of the middle of a block.
        second = [[*first[0], *answers[0], 5, 6], [*first[1], *answers[1][:7], 5, 6], [*first[2][:150], 5, 6]]
        assert_greedy(model, second, generate(second))
        witnesses = llm.get_stats()[-1]["witnesses"]
        assert witnesses["cached_tokens.device"] > 32 + 64
        assert witnesses["reused_blocks"] > 0
    finally:
        llm.shutdown()
