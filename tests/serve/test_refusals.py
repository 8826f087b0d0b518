"""What is wrong is said in OpenAI's shape, by name, and hurts nobody else."""

from __future__ import annotations

import json
import random
import threading
from typing import Any

import httpx
import openai
import pytest
from serving_rig import NAME, Running, slowed

from headrace import SchedulerConfig

CHAT = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
TEXT = {"prompt": "a", "max_tokens": 2}


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("change", "param", "word"),
    [
        ({"temperatur": 1.0}, "temperatur", "temperature"),
        ({"suffix": "x"}, "suffix", "middle"),
        ({"max_tokens": 0}, "max_tokens", "greater"),
        ({"max_tokens": True}, "max_tokens", "integer"),
        ({"max_tokens": "5"}, "max_tokens", "integer"),
        ({"temperature": -1}, "temperature", "greater"),
        ({"top_p": 0}, "top_p", "greater"),
        ({"n": 2, "temperature": 0}, None, "greedy"),
        ({"n": 129}, "n", "128"),
        ({"logprobs": 21}, "logprobs", "20"),
        ({"stop": ["", "a"]}, "stop", "empty"),
        ({"stop_token_ids": [320]}, "stop_token_ids", "320"),
        ({"logit_bias": {"999": 1}}, "logit_bias", "999"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "token id"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "100"),
        ({"prompt": []}, "prompt", "list"),
        ({"prompt": [5, -1]}, "prompt", "-1"),
        ({"prompt": [[5], [320]]}, "prompt", "320"),
        ({"prompt": [5.5]}, "prompt", "list"),
        ({"prompt": ["a"] * 600}, "prompt", "512"),
        ({"prompt": "a" * 3000}, "prompt", "3000"),
        ({"prompt": "a", "max_tokens": 3000}, "max_tokens", "2048"),
        ({"prompt": ["a"] * 500, "n": 3}, "n", "1024"),
        ({"best_of": 3}, "best_of", "n=1"),
        ({"use_beam_search": True}, "use_beam_search", "beam"),
        ({"min_tokens": 5}, None, "min_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage", "include_usage"),
        (
            {"stream": True, "stream_options": {"continuous_usage_stats": True}},
            "stream_options",
            "include_usage=true",
        ),
        ({"stream": True, "prompt_logprobs": 1}, "prompt_logprobs", "stream=false"),
        ({"echo": True, "detokenize": False}, "echo", "detokenize=true"),
        ({"stop": "a", "detokenize": False}, None, "stop_token_ids"),
        ({"best_of": 0}, "best_of", "greater"),
        ({"service_tier": "flex"}, "service_tier", "priority"),
        ({"prompt_cache_key": "a"}, "prompt_cache_key", "cache_salt"),
        ({"agent_hierarchy": []}, "agent_hierarchy", "priority"),
        ({"logprobs_mode": "cooked"}, "logprobs_mode", "processed"),
        ({"priority": 2.0}, "priority", "1"),
        ({"response_format": {"type": "json_object"}}, "response_format", "guided"),
        ({"seed": 1 << 64}, "seed", "less"),
    ],
)
def test_completions_name_the_field(tiny: Running, change: dict[str, Any], param: str | None, word: str) -> None:
    error = error_of(tiny.post("/v1/completions", TEXT | change), 400)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert word in error["message"]


@pytest.mark.parametrize(
    ("change", "param", "word"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages.0.role", "user"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "required"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}, "messages.0.tool_calls", "tool calls"),
        ({"messages": [{"role": "user", "content": "a", "nmae": "b"}]}, "messages.0.nmae", "name"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role", "tool calls"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "a text"),
        ({"messages": [{"role": "user", "content": []}]}, "messages.0.content", "a text"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text", "required"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "txt": 1}]}]},
            "messages.0.content.0.txt",
            "text",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
            "messages.0.content",
            "audio",
        ),
        ({"prompt_token_ids": [5]}, "prompt_token_ids", "/v1/completions"),
        ({"thinking_token_budget": 5}, "thinking_token_budget", "max_tokens"),
        ({"tools": [{"type": "function"}]}, "tools", "tool calls"),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs=true"),
        ({"max_completion_tokens": 3}, "max_tokens", "old name"),
        ({"chat_template": "{{ x }}"}, "chat_template", "code"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "messages"),
        ({"echo": True}, "echo", "no field"),
    ],
)
def test_chat_names_the_field(tiny: Running, change: dict[str, Any], param: str, word: str) -> None:
    error = error_of(tiny.post("/v1/chat/completions", CHAT | change), 400)
    assert error["param"] == param
    assert word in error["message"]


def test_an_image_is_refused(tiny: Running) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:"}}
    error = error_of(tiny.post("/v1/chat/completions", {"messages": [{"role": "user", "content": [part]}]}), 400)
    assert error["param"].startswith("messages.0.content")


def test_neutral_values_of_what_is_missing_are_taken(tiny: Running) -> None:
    neutral = {"tools": [], "response_format": {"type": "text"}, "use_beam_search": False, "store": False, "n": None}
    assert tiny.post("/v1/chat/completions", CHAT | neutral).status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"a"', b"\xff\xfe", b"[" * 100_000, b'{"prompt": NaN}'])
def test_what_is_no_body_is_a_400(tiny: Running, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    error_of(httpx.post(f"{tiny.url}/v1/completions", content=body, headers=headers), 400)


def test_text_that_is_no_unicode_is_a_400(tiny: Running) -> None:
    headers = {"content-type": "application/json"}
    fields = ('"model": "?"', '"?": 1', '"stop": "?"', '"logit_bias": {"?": 1}', '"user": "?"', '"cache_salt": "?"')
    for field in ('"prompt": "?"', '"prompt": ["?"]', *(f'"prompt": "a", {one}' for one in fields)):
        body = f"{{{field}}}".replace("?", "\\ud800").encode()
        error_of(httpx.post(f"{tiny.url}/v1/completions", content=body, headers=headers), 400)


def test_other_statuses_have_the_same_shape(tiny: Running) -> None:
    assert error_of(tiny.post("/v1/completions", TEXT | {"model": "gpt"}), 404)["code"] == "model_not_found"
    error_of(tiny.get("/nowhere"), 404)
    error_of(tiny.get("/v1/completions"), 405)
    with pytest.raises(openai.NotFoundError, match="tiny"):
        tiny.client().chat.completions.create(model="gpt", messages=CHAT["messages"])


def test_a_key_is_asked_for(serve: object) -> None:
    with serve({"api_keys": ("one", "two")}) as running:
        assert running.client(api_key="two").models.list().data[0].id == NAME
        with pytest.raises(openai.AuthenticationError):
            running.client(api_key="three").models.list()
        for headers in ({}, {"Authorization": "Basic one"}, {"Authorization": "Bearer"}, {"Authorization": "one"}):
            error_of(running.post("/v1/completions", TEXT, headers=headers), 401)
        assert running.get("/health").status_code == 200
        error_of(running.get("/server_info"), 401)


def test_a_body_may_not_be_too_large(serve: object) -> None:
    with serve({"max_body_bytes": 1000}) as running:
        error_of(running.post("/v1/completions", {"prompt": "a" * 1000}), 413)

        def pieces() -> Any:
            yield b'{"prompt": "'
            for _ in range(20):
                yield b"a" * 100

        headers = {"content-type": "application/json"}
        error_of(httpx.post(f"{running.url}/v1/completions", content=pieces(), headers=headers), 413)
        assert running.post("/v1/completions", TEXT).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_what_can_never_fit_into_the_cache_is_refused_at_once(serve: object, stream: bool) -> None:
    with serve(kv_cache_config={"max_tokens": 64}) as running:
        body = {"prompt": "a" * 60, "max_tokens": 60, "stream": stream}
        error = error_of(running.post("/v1/completions", body), 400)
        assert error["code"] == "context_length_exceeded"
        assert "64" in error["message"]
        assert running.post("/v1/completions", TEXT).status_code == 200
        running.idle()


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_is_a_429(serve: object, stream: bool) -> None:
    engine = {"max_batch_size": 1, "scheduler_config": SchedulerConfig(max_queue_size=1)}
    with serve(**engine) as running, slowed(running.llm, 0.02):
        long = {"prompt": "a", "max_tokens": 500, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{running.url}/v1/completions", json=long, timeout=60) as first:
            lines = first.iter_lines()
            next(lines)
            running.llm.generate_async("b")  # fills the one place in the queue
            answer = running.post("/v1/completions", TEXT | {"stream": stream})
            assert error_of(answer, 429)["code"] == "queue_full"
            assert int(answer.headers["retry-after"]) >= 1
        running.idle()


def mutated(random: random.Random, value: Any, depth: int = 0) -> Any:
    """``value`` with something in it changed, removed, added or swapped for another type."""
    strange = (None, True, -1, 0, 1 << 70, 1e308, "", "a", [], {}, [[]], {"a": []}, "\x00", "\U0001f600", [None], -0.0)
    if depth > 3 or random.random() < 0.2 * depth:
        return random.choice(strange)
    if isinstance(value, dict) and value:
        changed = dict(value)
        key = random.choice(list(changed))
        move = random.randrange(4)
        if move == 0:
            del changed[key]
        elif move == 1:
            changed[random.choice(("x", "", "self", "model_config", "prompt", "messages", "stop"))] = random.choice(
                strange
            )
        else:
            changed[key] = mutated(random, changed[key], depth + 1)
        return changed
    if isinstance(value, list) and value:
        changed = list(value)
        changed[random.randrange(len(changed))] = mutated(random, random.choice(changed), depth + 1)
        return changed
    return random.choice(strange)


SEEDS = {
    "/v1/completions": {
        "prompt": ["a", [5, 6]],
        "max_tokens": 2,
        "n": 2,
        "stop": ["x"],
        "seed": 3,
        "logit_bias": {"5": 1.0},
        "echo": True,
        "logprobs": 2,
        "temperature": 1.0,
        "top_k": 5,
        "stop_token_ids": [9],
        "cache_salt": "s",
    },
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
        "max_tokens": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "top_logprobs": 2,
        "top_p": 0.5,
        "min_p": 0.1,
        "chat_template_kwargs": {"a": 1},
        "presence_penalty": 0.5,
        "truncate_prompt_tokens": 4,
        "priority": 0.5,
    },
    "/tokenize": {"messages": [{"role": "user", "content": "a"}], "add_generation_prompt": True},
    "/detokenize": {"tokens": [5, 6, 7], "skip_special_tokens": True},
}


def test_mutated_bodies_hurt_neither_the_server_nor_a_neighbour(tiny: Running) -> None:
    """The neighbour runs all the time, one request after the other; each of its answers is what it is alone."""
    steady = {"prompt": "the river runs", "max_tokens": 60, "temperature": 0.0, "ignore_eos": True, "logprobs": 1}
    ask = lambda: tiny.post("/v1/completions", steady).json()["choices"]  # noqa: E731
    alone, beside, done = ask(), [], threading.Event()

    def neighbour() -> None:
        while not done.is_set():
            beside.append(ask())

    thread = threading.Thread(target=neighbour)
    thread.start()
    try:
        _fuzz(tiny, random.Random(20))
    finally:
        done.set()
        thread.join(30)
    assert len(beside) > 2
    for choices in beside:
        assert choices[0]["text"] == alone[0]["text"]
        assert choices[0]["logprobs"]["tokens"] == alone[0]["logprobs"]["tokens"]
    tiny.idle()


def _fuzz(tiny: Running, chance: random.Random) -> None:
    seen: dict[int, int] = {}
    with httpx.Client(timeout=60) as client:
        for _ in range(500):
            path = chance.choice(list(SEEDS))
            body = SEEDS[path]
            for _ in range(chance.choice((1, 1, 1, 2, 3))):
                body = mutated(chance, body)
            if isinstance(body, dict) and path.startswith("/v1") and body.get("max_tokens") is None:
                body["max_tokens"] = 2
            text = json.dumps(body).encode()
            if chance.random() < 0.1:
                at = chance.randrange(len(text))
                text = text[:at] + bytes([chance.randrange(256)]) + text[at + 1 :]
            answer = client.post(tiny.url + path, content=text, headers={"content-type": "application/json"})
            seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
            assert answer.status_code < 500, (path, text, answer.text)
            if answer.status_code != 200:
                error_of(answer, answer.status_code)
            elif "event-stream" in answer.headers["content-type"]:
                assert answer.text.endswith("data: [DONE]\n\n"), (text, answer.text)
    assert seen[200] > 50
    assert seen[400] > 150


def test_a_fault_of_the_server_has_the_shape_too_and_ends_nothing_else(
    tiny: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise LookupError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(type(tiny.serving.engine), "prepare", broken)
        error = error_of(tiny.post("/v1/completions", TEXT), 500)
    assert error["type"] == "server_error"
    assert "a bug" not in error["message"]
    assert "a bug" in caplog.text
    assert tiny.post("/v1/completions", TEXT).status_code == 200
