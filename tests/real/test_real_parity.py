"""Both built-in models against transformers on the same weights: prompt logprobs and distributions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from real_reference import reference

from headrace import LLM, KvCacheConfig, SamplingParams
from headrace.tokenizer.load import load_tokenizer
from headrace.weights.resolve import resolve_model
from parity.harness import ModelRun

pytestmark = [pytest.mark.real, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
LENGTHS = {"smollm2": 2200, "gemma3-270m": 1100}
"""Tokens of prose. Gemma's window is 512, and a row of its logits is a megabyte."""
TOLERANCE = 5e-4
"""On a logprob in fp32, 18 and 30 layers deep."""
SLICE = 64


def real_text(path: Path, n_tokens: int) -> list[int]:
    """Prose of this repository, in the model's tokens."""
    text = "\n".join(page.read_text() for page in (ROOT / "LICENSE", ROOT / "docs" / "sampling.md"))
    tokens = load_tokenizer(path).encode(text)[:n_tokens]
    assert len(tokens) == n_tokens
    return tokens


def mean_kl(truth: torch.Tensor, other: torch.Tensor) -> float:
    """Mean over positions of KL(truth || other); both are log probabilities [T, V]. A few rows at a time."""
    parts = zip(truth.split(SLICE), other.split(SLICE), strict=True)
    return sum((one.exp() * (one - two)).sum().item() for one, two in parts) / len(truth)


@pytest.fixture(scope="module", params=LENGTHS)
def case(request: pytest.FixtureRequest) -> tuple[Path, list[int], torch.Tensor]:
    """Path, tokens, and transformers' log probabilities [T, V] in fp32."""
    path = resolve_model(request.param).path
    tokens = real_text(path, LENGTHS[request.param])
    return path, tokens, _theirs(path, tokens, torch.float32)


def _theirs(path: Path, tokens: list[int], dtype: torch.dtype) -> torch.Tensor:
    with torch.inference_mode():
        return reference(path, dtype)(torch.tensor([tokens])).logits[0].float().log_softmax(-1)


def test_prompt_logprobs_through_the_api(case: tuple[Path, list[int], torch.Tensor]) -> None:
    """In chunks, with overlap, and a second time, when the cache holds the first."""
    path, tokens, exact = case
    want = exact[:-1].gather(1, torch.tensor(tokens[1:])[:, None]).squeeze(1)
    params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    cache = KvCacheConfig(max_tokens=4096)
    with LLM(path, dtype="float32", max_num_tokens=300, kv_cache_config=cache, num_threads=1) as llm:
        for _ in range(2):
            output = llm.generate(tokens, params, use_tqdm=False).outputs[0]
            entries = zip(tokens[1:], output.prompt_logprobs[1:], strict=True)
            got = torch.tensor([entry[token].logprob for token, entry in entries])
            worst = (got - want).abs().max().item()
            print(f"{path.name}: largest difference of {len(got)} prompt logprobs {worst:.1e}")
            assert worst < TOLERANCE
            assert output.token_ids == [int(exact[-1].argmax())]
        assert llm.get_stats()[-1]["witnesses"]["chunks"] > 2


def test_distributions_are_closer_to_fp32_than_transformers_bf16_is(
    case: tuple[Path, list[int], torch.Tensor],
) -> None:
    path, tokens, exact = case
    their_kl = mean_kl(exact, _theirs(path, tokens, torch.bfloat16))
    dtypes = (torch.float32, torch.bfloat16)
    ours = {dtype: mean_kl(exact, ModelRun(path, dtype=dtype).logprobs(tokens)) for dtype in dtypes}
    print(f"{path.name}: mean KL over {len(tokens)} positions: transformers bf16 {their_kl:.2e}, ours {ours}")
    assert ours[torch.float32] < 1e-6
    assert ours[torch.bfloat16] < their_kl
