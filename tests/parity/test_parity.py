"""Every variant against transformers in fp32, eager attention: prompt logprobs and greedy tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from harness import ModelRun, Output, Run
from tiny import VARIANTS, make, save
from transformers import PreTrainedModel

TOLERANCE = 5e-4
"""On logprobs. Sharp attention (see tiny.py) makes fp32 noise of up to 1e-4 of it, in the reference as much as here."""
LENGTHS = (1, 3, 40, 70, 200)
MAX_TOKENS = 8

RUNS: dict[str, Callable[[Path], Run]] = {
    "alone": lambda folder: ModelRun(folder, together=False),
    "together": ModelRun,
    "chunks of 7": lambda folder: ModelRun(folder, chunk=7),
    "chunks of 33": lambda folder: ModelRun(folder, chunk=33),
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


Reference = tuple[PreTrainedModel, Path]


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reference]:
    """Variant -> its reference model and checkpoint folder, made once."""
    made: dict[str, Reference] = {}

    def get(variant: str) -> Reference:
        if variant not in made:
            model = make(variant)
            made[variant] = model, save(model, tmp_path_factory.mktemp(variant))
        return made[variant]

    return get


def prompts_for(vocab_size: int, lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    rng = random.Random(3)
    return [[rng.randrange(3, vocab_size) for _ in range(length)] for length in lengths]


def check(model: PreTrainedModel, prompts: Sequence[Sequence[int]], outputs: Sequence[Output]) -> float:
    """Compares with one pass of the reference over prompt + output, where greedy means that every output token is the
    most likely one after those before it. Returns the largest difference of a prompt logprob."""
    worst = 0.0
    for prompt, output in zip(prompts, outputs, strict=True):
        assert len(output.tokens) == MAX_TOKENS
        tokens = torch.tensor([*prompt, *output.tokens])
        expected = model(tokens[None]).logits[0].log_softmax(-1)
        assert expected[len(prompt) - 1 : -1].argmax(-1).tolist() == list(output.tokens)
        mine = torch.tensor(output.prompt_logprobs)
        want = expected[: len(prompt) - 1].gather(1, tokens[1 : len(prompt), None]).squeeze(1)
        assert mine.shape == want.shape
        worst = max(worst, (mine - want).abs().max().item() if len(prompt) > 1 else 0.0)
    return worst


@pytest.mark.parametrize("how", RUNS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_prompt_logprobs_and_greedy_tokens_equal_transformers(
    variant: str, how: str, references: Callable[[str], Reference], record_property: Callable[[str, object], None]
) -> None:
    model, folder = references(variant)
    prompts = prompts_for(model.config.vocab_size)
    worst = check(model, prompts, RUNS[how](folder).run(prompts, MAX_TOKENS))
    record_property("max_logprob_error", worst)
    print(f"{variant}, {how}: largest difference of a prompt logprob {worst:.1e}")
    assert worst < TOLERANCE
