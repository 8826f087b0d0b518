"""In bf16 headrace is at least as close to the fp32 reference as the reference's own bf16 run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from harness import ModelRun
from transformers import PreTrainedModel

from headrace.eval.tiny import make, random_prompts, save


def divergence(truth: torch.Tensor, logprobs: torch.Tensor) -> float:
    """Mean over positions of KL(truth || other)."""
    return (truth.exp() * (truth - logprobs)).sum(-1).mean().item()


@pytest.mark.parametrize(
    "variant",
    [
        "llama-biases",
        "llama-llama3",
        "llama-tied",
        "qwen3",
        "gemma3",
        "gemma3-cap",
        "mistral-sliding",
        "qwen2",
        "phi3-longrope-long",
        "nemotron-biases-tied",
        "exaone4",
        "mixtral",
        "gpt-oss",
        "llama4",
        "qwen3-moe",
        "deepseek-v3",
    ],
)
def test_bf16_is_as_close_to_fp32_as_the_reference_is(variant: str, tmp_path: Path) -> None:
    model = make(variant).bfloat16()
    save(model, tmp_path)

    # Loaded afresh, because model.bfloat16() rounds the frequencies of its rope as well.

    def load(dtype: torch.dtype) -> PreTrainedModel:
        return type(model).from_pretrained(tmp_path, dtype=dtype, attn_implementation="eager").eval()

    exact, half = load(torch.float32), load(torch.bfloat16)
    mine = ModelRun(tmp_path, dtype=torch.bfloat16)
    prompts = random_prompts(
        model.config.vocab_size, [200] * 16
    )  # where experts are chosen a few rows decide the mean of fewer
    reference_kl = mine_kl = 0.0
    with torch.no_grad():
        for prompt in prompts:
            truth = exact(torch.tensor([prompt])).logits[0].log_softmax(-1)
            reference_kl += divergence(truth, half(torch.tensor([prompt])).logits[0].float().log_softmax(-1))
            mine_kl += divergence(truth, mine.logprobs(prompt))
    print(f"{variant}: KL of bf16 from fp32, mean of {len(prompts)} prompts: transformers {reference_kl / 16:.2e},"
          f" headrace {mine_kl / 16:.2e}")  # fmt: skip
    assert 0 < mine_kl <= reference_kl
