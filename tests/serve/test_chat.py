"""/v1/chat/completions through the official client."""

from __future__ import annotations

import math

import httpx
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from serving_rig import NAME, Running

from headrace import SamplingParams

MESSAGES = [{"role": "system", "content": "be short"}, {"role": "user", "content": "hello"}]
PROMPT = "<system>be short\n<user>hello\n<assistant>"


def test_it_answers_what_the_template_asks(tiny: Running) -> None:
    expected = tiny.llm.generate(PROMPT, SamplingParams(max_tokens=9, temperature=0.0, add_special_tokens=False))
    got = tiny.client().chat.completions.create(model=NAME, messages=MESSAGES, temperature=0, max_completion_tokens=9)
    assert got.choices[0].message.content == expected.outputs[0].text
    assert got.choices[0].message.role == "assistant"
    assert got.usage.prompt_tokens == len(PROMPT)
    ChatCompletion.model_validate(got.model_dump(), strict=False)


def test_parts_developer_and_names_reach_the_template(tiny: Running) -> None:
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "be"}, {"type": "text", "text": "short"}]},
        {"role": "user", "content": "hi", "name": "ann"},
        {"role": "assistant", "content": "yes", "refusal": None, "tool_calls": None},
    ]
    got = tiny.post("/tokenize", {"messages": messages, "add_generation_prompt": False}).json()
    assert tiny.post("/detokenize", {"tokens": got["tokens"]}).json() == {
        "prompt": "<system>be\nshort\n<user>hi\n<assistant>yes\n"
    }


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_adds_up_to_the_whole(tiny: Running, n: int) -> None:
    body = {"model": NAME, "messages": MESSAGES, "max_completion_tokens": 24, "seed": 4, "n": n}
    whole = tiny.client().chat.completions.create(**body)
    chunks = list(tiny.client().chat.completions.create(stream=True, stream_options={"include_usage": True}, **body))
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1
    for index in range(n):
        mine = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert mine[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in mine) == whole.choices[index].message.content
        assert [choice.finish_reason for choice in mine] == [None] * (len(mine) - 1) + [
            whole.choices[index].finish_reason
        ]


def test_every_event_is_what_the_client_expects(tiny: Running) -> None:
    body = {
        "messages": MESSAGES,
        "max_tokens": 6,
        "ignore_eos": True,
        "stream": True,
        "logprobs": True,
        "stream_options": {"include_usage": True},
    }
    answer = tiny.post("/v1/chat/completions", body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, last, rest = answer.text.split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    parsed = [ChatCompletionChunk.model_validate_json(event.removeprefix("data: ")) for event in events]
    assert sum(len(choice.logprobs.content) for one in parsed for choice in one.choices if choice.logprobs) == 6


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(tiny: Running, stream: bool) -> None:
    body = {"model": NAME, "messages": MESSAGES, "max_tokens": 8, "seed": 1, "logprobs": True, "top_logprobs": 3}
    got = tiny.client().chat.completions.create(stream=stream, **body)
    choices = [choice for chunk in got for choice in chunk.choices] if stream else got.choices
    content = [one for choice in choices if choice.logprobs for one in choice.logprobs.content]
    params = SamplingParams(max_tokens=8, temperature=1.0, seed=1, logprobs=3, add_special_tokens=False)
    expected = tiny.llm.generate(PROMPT, params).outputs[0]
    assert len(content) == expected.length
    for one, token, entry in zip(content, expected.token_ids, expected.logprobs, strict=True):
        assert one.logprob == pytest.approx(entry[token].logprob, abs=1e-5)
        assert bytes(one.bytes) == tiny.llm.tokenizer.token_bytes(token)
        values = [top.logprob for top in one.top_logprobs]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert all(math.isfinite(value) for value in values)


def test_a_second_turn_comes_from_the_cache(tiny: Running) -> None:
    messages = [{"role": "user", "content": "tell me about rivers and mills " * 4}]
    body = {"model": NAME, "messages": messages, "max_tokens": 2}
    tiny.client().chat.completions.create(**body)
    again = tiny.client().chat.completions.create(**body)
    assert again.usage.prompt_tokens_details.cached_tokens >= 96
    salted = tiny.client().chat.completions.create(**body, extra_body={"cache_salt": "mine"})
    assert salted.usage.prompt_tokens_details.cached_tokens == 0


def test_unlimited_runs_to_the_sequence_limit(serve: object) -> None:
    with serve(max_seq_len=64) as running:
        got = running.client().chat.completions.create(
            model=NAME, messages=[{"role": "user", "content": "a"}], extra_body={"ignore_eos": True}
        )
        assert got.usage.total_tokens == 64
        assert got.choices[0].finish_reason == "length"


def test_a_stream_has_its_first_event_before_its_last_token(tiny: Running) -> None:
    body = {"messages": MESSAGES, "max_tokens": 600, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{tiny.url}/v1/chat/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        assert tiny.serving.jobs
    tiny.idle()
