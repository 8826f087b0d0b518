"""What is wrong is said in OpenAI's shape, by name, and hurts nobody else."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel, ValidationError
from serving_rig import NAME, Running, slowed

from headrace import SchedulerConfig
from headrace.serve.chat_protocol import ChatCompletionRequest
from headrace.serve.protocol import CompletionRequest, DetokenizeRequest

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
        ({"n": 3, "best_of": 2}, None, "best_of"),
        ({"best_of": 3, "temperature": 0.0}, None, "use_beam_search"),
        ({"prompt": ["a"] * 500, "best_of": 3}, "n", "1024"),
        ({"use_beam_search": True}, None, "best_of"),
        ({"use_beam_search": True, "best_of": 2, "top_k": 5}, None, "top_k"),
        ({"use_beam_search": True, "best_of": 100}, "best_of", "max_batch_size"),
        ({"length_penalty": 0.5}, "length_penalty", "use_beam_search"),
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


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b'{"prompt": "a", "prompt": "b"}', "'prompt' twice"),
        (b'{"prompt": "a", "logit_bias": {"5": 1, "5": 2}}', "'5' twice"),
        (b'{"prompt": "a", "temperature": NaN}', "NaN"),
        (b'{"prompt": "a", "seed": ' + b"1" * 5000 + b"}", "4300 digits"),
        (b'{"prompt": "\xff"}', "not UTF-8: invalid start byte at byte 12"),
        ('{"prompt": "a"}'.encode("utf-16"), "not UTF-8"),
        (b'{"prompt": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"prompt": "a",}', "line 1, column 16"),
        (b"[]", "not a JSON object"),
        (b"", "missing"),
    ],
)
def test_what_is_wrong_with_a_body_is_said(tiny: Running, body: bytes, word: str) -> None:
    headers = {"content-type": "application/json"}
    error = error_of(httpx.post(f"{tiny.url}/v1/completions", content=body, headers=headers), 400)
    assert word in error["message"]


@pytest.mark.parametrize(
    ("headers", "word"),
    [
        ({}, "application/json"),
        ({"content-type": "text/plain"}, "text/plain"),
        ({"content-type": "application/x-www-form-urlencoded"}, "urlencoded"),
        ({"content-type": "application/json", "content-encoding": "gzip"}, "gzip"),
    ],
)
def test_a_body_of_another_kind_is_a_415(tiny: Running, headers: dict[str, str], word: str) -> None:
    body = json.dumps(TEXT).encode()
    assert word in error_of(httpx.post(f"{tiny.url}/v1/completions", content=body, headers=headers), 415)["message"]
    right = {"content-type": "Application/JSON; charset=utf-8", "content-encoding": "identity"}
    assert httpx.post(f"{tiny.url}/v1/completions", content=b"\xef\xbb\xbf" + body, headers=right).status_code == 200


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"stop_token_ids": [5] * 4097}, "stop_token_ids"),
        ({"logit_bias": {str(token): 1 for token in range(4097)}}, "logit_bias"),
        ({"metadata": {str(token): "a" for token in range(4097)}}, "metadata"),
        ({"chat_template_kwargs": {str(token): 1 for token in range(4097)}}, "chat_template_kwargs"),
        ({"messages": CHAT["messages"] * 4097}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 4097}]}, "messages.0.content"),
    ],
)
def test_lists_and_objects_have_a_limit(tiny: Running, change: dict[str, Any], param: str) -> None:
    error = error_of(tiny.post("/v1/chat/completions", CHAT | change), 400)
    assert error["param"] == param
    assert "at most 4096" in error["message"]


@pytest.mark.parametrize(
    ("body", "change"),
    [
        (CompletionRequest, TEXT | {"stop_token_ids": [""] * 4000}),
        (CompletionRequest, TEXT | {"logit_bias": {str(token): "" for token in range(1 << 16)}}),
        (ChatCompletionRequest, {"messages": [{}] * 4000}),
        (ChatCompletionRequest, {"messages": [{"role": "user", "content": [{}] * 4000}] * 2}),
        (DetokenizeRequest, {"tokens": [""] * (1 << 16)}),
    ],
)
def test_the_first_error_of_a_list_is_enough(body: type[BaseModel], change: dict[str, Any]) -> None:
    """Collecting millions of them takes minutes, in which no stream moves."""
    with pytest.raises(ValidationError) as caught:
        body.model_validate(change)
    assert caught.value.error_count() <= 2


def test_text_that_is_no_unicode_is_a_400(tiny: Running) -> None:
    headers = {"content-type": "application/json"}
    fields = ('"model": "?"', '"?": 1', '"stop": "?"', '"logit_bias": {"?": 1}', '"user": "?"', '"cache_salt": "?"')
    for field in ('"prompt": "?"', '"prompt": ["?"]', *(f'"prompt": "a", {one}' for one in fields)):
        body = f"{{{field}}}".replace("?", "\\ud800").encode()
        error_of(httpx.post(f"{tiny.url}/v1/completions", content=body, headers=headers), 400)


def test_other_statuses_have_the_same_shape(tiny: Running) -> None:
    assert error_of(tiny.post("/v1/completions", TEXT | {"model": "gpt"}), 404)["code"] == "model_not_found"
    assert "'/nowhere'" in error_of(tiny.get("/nowhere"), 404)["message"]
    # A Host that is none must not make an error of the error.
    assert "'/nowhere'" in error_of(tiny.get("/nowhere", headers={"host": "[::1"}), 404)["message"]
    assert "takes POST" in error_of(tiny.get("/v1/completions"), 405)["message"]
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


@pytest.mark.parametrize("field", ["min_tokens", "top_k"])
def test_a_number_beyond_any_use_is_refused_and_the_engine_lives_on(tiny: Running, field: str) -> None:
    for number in (1 << 31, 1 << 63, 1 << 70):
        answer = tiny.post("/v1/completions", {"model": NAME, "prompt": "a", field: number})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == field
    assert tiny.post("/v1/completions", {"model": NAME, "prompt": "a", "max_tokens": 1}).status_code == 200
