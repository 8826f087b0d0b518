"""Prompts with pictures through the public API, against transformers in fp32."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mllama
import pytest
import torch
from mllama import picture
from PIL import Image
from test_parity import MAX_TOKENS, TOLERANCE
from transformers import PreTrainedModel

from headrace import LLM, SamplingParams
from headrace.eval.tiny import random_prompts

Case = tuple[list[int], list[Image.Image]]

SIZES = ((28, 28), (20, 61), (130, 40), (70, 57), (9, 100), (56, 56))
"""Width and height: one tile, two to four in a row or a column, and four in a square."""


def cases(image: int, vocab_size: int) -> list[Case]:
    """Prompts of every length with no, one and two pictures: in front, in the middle, at the end, side by side."""
    texts = random_prompts(vocab_size)
    pictures = [picture(seed, *size) for seed, size in enumerate(SIZES)]
    one, three, forty, seventy, long = texts
    return [
        ([image], [pictures[0]]),
        ([*one, image], [pictures[1]]),
        ([*one, image, *three], [pictures[2]]),
        ([image, *forty], [pictures[3]]),
        (seventy, []),
        ([*forty, image, *seventy], [pictures[4]]),
        ([*three, image, *forty, image, *three], [pictures[5], pictures[2]]),
        ([image, image, *long[:60]], [pictures[1], pictures[3]]),
        ([*long[:90], image, *long[90:]], [pictures[5]]),
    ]


def prompt_of(case: Case) -> dict[str, Any]:
    ids, pictures = case
    return {"prompt_token_ids": ids, "multi_modal_data": {"image": pictures}} if pictures else {"prompt_token_ids": ids}


def engine(folder: Path, **options: Any) -> LLM:
    return LLM(str(folder), dtype="float32", skip_tokenizer_init=True, num_threads=1, **options)


def check(model: PreTrainedModel, given: Sequence[Case], outputs: Sequence[Any]) -> float:
    """Greedy tokens are those of the reference; the largest difference of a logprob of theirs. The reference runs in
    fp64: in fp32 its own error is as large as ours, up to 4e-4 with heads this sharp."""
    worst, model = 0.0, copy.deepcopy(model).double()
    for (ids, pictures), output in zip(given, outputs, strict=True):
        one = output.outputs[0]
        tokens = list(one.token_ids)
        assert len(tokens) == MAX_TOKENS
        want = mllama.logprobs(model, [*ids, *tokens], pictures)[len(ids) - 1 : -1]
        assert want.argmax(-1).tolist() == tokens
        got = torch.tensor([entry[token].logprob for entry, token in zip(one.logprobs, tokens, strict=True)])
        worst = max(worst, (got - want.gather(1, torch.tensor(tokens)[:, None]).squeeze(1)).abs().max().item())
    return worst


@pytest.mark.parametrize("variant", ["mllama", "mllama-odd-mqa"])
@pytest.mark.parametrize("options", [{"max_batch_size": 1}, {"max_num_tokens": 33}], ids=["alone", "in chunks"])
def test_answers_about_pictures_equal_transformers(
    variant: str, options: dict[str, Any], references: Callable[[str], tuple[PreTrainedModel, Path]]
) -> None:
    model, folder = references(variant)
    given = cases(model.config.image_token_index, model.config.vocab_size)
    params = SamplingParams(max_tokens=MAX_TOKENS, ignore_eos=True, detokenize=False, logprobs=0)
    with engine(folder, **options) as llm:
        outputs = llm.generate([prompt_of(case) for case in given], params, use_tqdm=False)
        llm.check_integrity()
    worst = check(model, given, outputs)
    print(f"{variant}: largest difference of a logprob {worst:.1e}")
    assert worst < TOLERANCE
