"""Every variant against transformers in fp32, eager attention: prompt logprobs and greedy tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from harness import ModelRun, Output, Run
from transformers import PreTrainedModel

from headrace.eval.tiny import make, random_prompts, save
from headrace.eval.tiny_variants import VARIANTS

TOLERANCE = 5e-4
"""On logprobs. Sharp attention (see tiny.py) blows fp32 noise up to 3e-4, in the reference as much as here."""
MAX_TOKENS = 8

RUNS: dict[str, Callable[[Path], Run]] = {
    "alone": lambda folder: ModelRun(folder, together=False),
    "together": ModelRun,
    "chunks of 7": lambda folder: ModelRun(folder, chunk=7),
    "chunks of 33": lambda folder: ModelRun(folder, chunk=33),
}


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
    variant: str, how: str, references: Callable[[str], tuple[PreTrainedModel, Path]]
) -> None:
    model, folder = references(variant)
    prompts = random_prompts(model.config.vocab_size)
    worst = check(model, prompts, RUNS[how](folder).run(prompts, MAX_TOKENS))
    print(f"{variant}, {how}: largest difference of a prompt logprob {worst:.1e}")
    assert worst < TOLERANCE


def test_dynamic_rope_beyond_the_models_positions(tmp_path: Path) -> None:
    """Equal to the reference at the length that the build fixes, and not what a shorter build gives."""
    model = make("llama-dynamic", max_position_embeddings=64)
    (prompt,) = random_prompts(model.config.vocab_size, [150])
    want = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
    folder = save(model, tmp_path)
    got = ModelRun(folder, max_seq_len=150).logprobs(prompt)
    assert (got - want).abs().max() < 5 * TOLERANCE
    other = ModelRun(folder, max_seq_len=64).logprobs(prompt)
    assert (other - want).abs().max() > 0.1


def test_long_rope_takes_its_list_from_the_longest_sequence_that_the_build_allows(tmp_path: Path) -> None:
    """The reference looks at the sequence at hand: it agrees where that comes to the same, and not elsewhere."""
    model = make("phi3-longrope-long", original_max_position_embeddings=100)
    folder = save(model, tmp_path)
    below, beyond = random_prompts(model.config.vocab_size, [90, 150])
    want_below, want_beyond = (model(torch.tensor([p])).logits[0].log_softmax(-1) for p in (below, beyond))
    short, long = ModelRun(folder, max_seq_len=100), ModelRun(folder)
    assert (short.logprobs(below) - want_below).abs().max() < 5 * TOLERANCE
    assert (long.logprobs(beyond) - want_beyond).abs().max() < 5 * TOLERANCE
    assert (long.logprobs(below) - want_below).abs().max() > 0.1


def test_files_of_the_hub_say_the_same_in_the_older_dialect(tmp_path: Path) -> None:
    """``su`` and a fraction at the top instead of ``rope_parameters``, as Phi-3's own files have it."""
    model = make("phi3-longrope-long")
    new, old = save(model, tmp_path / "new"), save(model, tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    rope = config.pop("rope_parameters")
    factors = {name: rope.pop(name) for name in ("short_factor", "long_factor")}
    config |= {name: rope[name] for name in ("rope_theta", "partial_rotary_factor")}
    config |= {"rope_scaling": {"type": "su", **factors}}
    (old / "config.json").write_text(json.dumps(config))
    (prompt,) = random_prompts(model.config.vocab_size, [60])
    assert torch.equal(ModelRun(old).logprobs(prompt), ModelRun(new).logprobs(prompt))
