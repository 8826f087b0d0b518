"""Prompts with pictures through the public API, against transformers in fp32."""

from __future__ import annotations

import copy
import math
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

from headrace import LLM, KvCacheConfig, RequestError, SamplingParams
from headrace.eval.tiny import random_prompts
from headrace.ops.native import core

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


def generate(llm: LLM, given: Sequence[Case], **options: Any) -> list[Any]:
    params = SamplingParams(max_tokens=MAX_TOKENS, ignore_eos=True, detokenize=False, logprobs=0, **options)
    return llm.generate([prompt_of(case) for case in given], params, use_tqdm=False)


def witnesses(llm: LLM) -> dict[str, int]:
    return llm.get_stats()[-1]["witnesses"]


def test_text_is_found_again_behind_the_same_picture_only(
    references: Callable[[str], tuple[PreTrainedModel, Path]],
) -> None:
    model, folder = references("mllama")
    image = model.config.image_token_index
    (text,) = random_prompts(model.config.vocab_size, [80])
    one, other = picture(1, 60, 40), picture(2, 60, 40)
    with engine(folder) as llm:
        assert check(model, [([image, *text], [one])], generate(llm, [([image, *text], [one])])) < TOLERANCE
        first = witnesses(llm)
        assert (first["encoded_media"], first["cached_tokens.device"]) == (1, 0)
        # The next turn about the same picture, and then one more picture.
        turns = [([image, *text, 7, 8], [one]), ([image, *text, 7, image, 9], [one, other])]
        for turn in turns:
            assert check(model, [turn], generate(llm, [turn])) < TOLERANCE
        second = witnesses(llm)
        assert second["cached_tokens.device"] >= 2 * 64
        assert (second["reused_media"], second["encoded_media"]) == (1, 2)
        # The same text behind another picture.
        assert check(model, [([image, *text], [other])], generate(llm, [([image, *text], [other])])) < TOLERANCE
        third = witnesses(llm)
        assert third["cached_tokens.device"] == second["cached_tokens.device"]
        assert third["encoded_media"] == 2
        llm.check_integrity()


def test_a_step_encodes_the_pictures_of_one_sequence(
    references: Callable[[str], tuple[PreTrainedModel, Path]],
) -> None:
    model, folder = references("mllama")
    image = model.config.image_token_index
    given = [([image, 5, 6, 7 + i], [picture(i, 28, 28)]) for i in range(4)] + [([5, 6, 7], []), ([5, 6, 8], [])]
    with engine(folder) as llm:
        outputs = generate(llm, given)
        steps = [one["inflightBatchingStats"]["numContextRequests"] for one in llm.get_stats()[:-1]]
    assert check(model, given, outputs) < TOLERANCE
    assert [n for n in steps if n][:4] == [1, 1, 1, 1]
    assert sum(steps) == len(given)


def test_a_prompt_logprob_of_a_picture_is_minus_infinity(
    references: Callable[[str], tuple[PreTrainedModel, Path]],
) -> None:
    model, folder = references("mllama")
    image, n_tokens = model.config.image_token_index, model.config.vocab_size
    case = ([5, 6, image, 7, 8], [picture(1, 28, 28)])
    with engine(folder) as llm:
        (output,) = generate(llm, [case], prompt_logprobs=1)
    entries = output.outputs[0].prompt_logprobs
    assert (entries[2][image].logprob, entries[2][image].rank) == (-math.inf, n_tokens + 1)
    want = mllama.logprobs(copy.deepcopy(model).double(), *case)
    for at, token in ((1, 6), (3, 7), (4, 8)):
        assert entries[at][token].logprob == pytest.approx(want[at - 1, token].item(), abs=TOLERANCE)


def test_a_request_without_a_place_for_its_picture_fails_alone(
    references: Callable[[str], tuple[PreTrainedModel, Path]],
) -> None:
    model, folder = references("mllama")
    with engine(folder, kv_cache_config=KvCacheConfig(max_tokens=64)) as llm:
        for prompt, words in (
            ({"prompt_token_ids": [5], "multi_modal_data": {"image": [picture(1, 9, 9)]}}, "0 places"),
            ({"prompt_token_ids": [model.config.image_token_index]}, "1 places"),
            ({"prompt_token_ids": [model.config.image_token_index + 1]}, "outside the vocabulary"),
            ({"prompt_token_ids": [5], "multi_modal_data": [1]}, "multi_modal_data is a dict"),
        ):
            with pytest.raises(RequestError, match=words):
                llm.generate(prompt, use_tqdm=False)
        image = model.config.image_token_index
        with pytest.raises(RequestError, match=r"exceed the KV cache, which holds .* beside its 9 media"):
            llm.generate(prompt_of(([image] * 9, [picture(1, 60, 60)] * 9)), use_tqdm=False)
        generate(llm, [([5, image], [picture(1, 9, 9)])])


def test_a_model_that_reads_text_refuses_pictures(references: Callable[[str], tuple[PreTrainedModel, Path]]) -> None:
    with (
        engine(references("llama")[1]) as llm,
        pytest.raises(RequestError, match="reads text only; leave multi_modal_data out"),
    ):
        llm.generate({"prompt_token_ids": [5], "multi_modal_data": {"image": [picture(1, 9, 9)]}})


@pytest.mark.skipif(not core.is_available(), reason=f"bits are promised by the native core only: {core.reason()}")
def test_in_bf16_an_answer_is_the_same_bits_alone_and_in_company(
    references: Callable[[str], tuple[PreTrainedModel, Path]],
) -> None:
    model, folder = references("mllama")
    given = cases(model.config.image_token_index, model.config.vocab_size)

    def run(**options: Any) -> list[Any]:
        params = SamplingParams(max_tokens=MAX_TOKENS, ignore_eos=True, detokenize=False, logprobs=2)
        args = {"dtype": "bfloat16", "skip_tokenizer_init": True, "num_threads": 2, **options}
        with LLM(str(folder), **args) as llm:
            outputs = llm.generate([prompt_of(case) for case in given], params, use_tqdm=False)
        return [(output.outputs[0].token_ids, output.outputs[0].logprobs) for output in outputs]

    alone = run(max_batch_size=1, cuda_graph_config=None, disable_overlap_scheduler=True)
    assert run(max_num_tokens=24) == alone
