"""The built-in model: a real checkpoint, a real tokenizer, real text."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from real_reference import reference

from headrace import LLM, KvCacheConfig, NGramDecodingConfig, RequestOutput, SamplingParams
from headrace.weights.resolve import resolve_model

pytestmark = pytest.mark.real

CACHE = KvCacheConfig(max_tokens=4096)


@pytest.fixture(scope="session")
def path() -> Path:
    return resolve_model("smollm2").path


@pytest.fixture(scope="session")
def llm() -> LLM:
    with LLM("smollm2", kv_cache_config=CACHE, num_threads=1) as llm:
        yield llm


def ask(llm: LLM, question: str, **options: object) -> RequestOutput:
    prompt = llm.tokenizer.chat([{"role": "user", "content": question}])
    return llm.generate(prompt, SamplingParams(add_special_tokens=False, **options))


def test_it_knows_the_capital_of_france(llm: LLM) -> None:
    output = ask(llm, "What is the capital of France?", max_tokens=20).outputs[0]
    assert "Paris" in output.text
    assert output.finish_reason == "stop"
    assert output.stop_reason is None


def test_greedy_text_equals_transformers(llm: LLM, path: Path) -> None:
    model = reference(path, torch.float32)
    questions = ["Name three rivers.", "Was ist 2 + 3?", "Write one sentence about rain."]
    prompts = [llm.tokenizer.chat([{"role": "user", "content": question}]) for question in questions]
    ours = llm.generate(prompts, SamplingParams(max_tokens=24, add_special_tokens=False), use_tqdm=False)
    for output in ours:
        ids = torch.tensor([output.prompt_token_ids])
        theirs = model.generate(ids, max_new_tokens=24, do_sample=False, eos_token_id=2, pad_token_id=2)
        assert output.outputs[0].token_ids == theirs[0, ids.shape[1] :].tolist()


def test_streamed_pieces_are_whole_characters_and_add_up(llm: LLM) -> None:
    text = "Emoji: 🙂🚀 日本語 — naïve café. Repeat it: Emoji: 🙂🚀 日本語 — naïve café. Repeat it: Emoji:"
    params = SamplingParams(max_tokens=40, ignore_eos=True)
    whole = llm.generate(text, params).outputs[0].text
    pieces = [output.outputs[0].text_diff for output in llm.generate_async(text, params, streaming=True)]
    assert "".join(pieces) == whole
    assert all("\ufffd" not in piece for piece in pieces[:-1])
    assert whole.strip()


def test_a_stop_string_across_tokens_cuts_text_and_tokens(llm: LLM) -> None:
    free = ask(llm, "What is the capital of France?", max_tokens=20).outputs[0]
    stop = free.text[free.text.index("France") + 3 : free.text.index("Paris") + 2]
    cut = ask(llm, "What is the capital of France?", max_tokens=20, stop=stop, logprobs=1).outputs[0]
    assert cut.text == free.text[: free.text.index(stop)]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)
    assert len(cut.logprobs) == len(cut.token_ids) < len(free.token_ids)
    assert cut.token_ids == free.token_ids[: len(cut.token_ids)]


def test_ngram_drafts_are_accepted_and_change_nothing(llm: LLM) -> None:
    prompt = "one two three four five six seven. " * 6 + "one two"
    params = SamplingParams(max_tokens=32, ignore_eos=True)
    plain = llm.generate(prompt, params).outputs[0].token_ids
    config = NGramDecodingConfig(max_draft_len=4)
    with LLM("smollm2", kv_cache_config=CACHE, speculative_config=config, num_threads=1) as drafting:
        drafted = drafting.generate(prompt, params).outputs[0].token_ids
        witnesses = drafting.get_stats()[-1]["witnesses"]
    assert drafted == plain
    assert witnesses["drafts_accepted"] >= 8
    assert witnesses["steps"] < 32


def test_await_and_async_for(llm: LLM) -> None:
    params = SamplingParams(max_tokens=8, ignore_eos=True)

    async def both() -> tuple[str, str]:
        waited = await llm.generate_async("The sea is", params)
        pieces = [o.outputs[0].text_diff async for o in llm.generate_async("The sea is", params, streaming=True)]
        assert len(pieces) > 1
        return waited.outputs[0].text, "".join(pieces)

    whole, streamed = asyncio.run(both())
    assert whole == streamed
