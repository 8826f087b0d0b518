"""Guided decoding over HTTP: the official client's shapes, the other names, and a 4xx for what is wrong."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel
from serving_rig import NAME, Running

SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": [1, 2]}, "b": {"type": "boolean"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
CHAT = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 200, "seed": 5}


class Answer(BaseModel):
    yes: bool


def chat(tiny: Running, **fields: Any) -> httpx.Response:
    return httpx.post(f"{tiny.url}/v1/chat/completions", json=CHAT | fields, timeout=60)


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    assert choice["finish_reason"] == "stop"
    return choice["message"]["content"]


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}},
        {"response_format": {"type": "json", "schema": SCHEMA}},
        {"guided_json": SCHEMA},
        {"guided_json": json.dumps(SCHEMA)},
    ],
)
def test_a_schema_by_all_its_names(tiny: Running, fields: dict[str, Any]) -> None:
    value = json.loads(text_of(chat(tiny, **fields)))
    assert list(value) == ["a", "b"]
    assert value["a"] in (1, 2)
    assert isinstance(value["b"], bool)


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "regex", "regex": "[a-c]{3}"}},
        {"response_format": {"type": "ebnf", "ebnf": "root ::= [a-c] [a-c] [a-c]"}},
        {"guided_regex": "[a-c]{3}"},
        {"guided_choice": ["abc", "bca"]},
        {"guided_grammar": "start: /[a-c]{3}/"},
    ],
)
def test_what_is_no_json(tiny: Running, fields: dict[str, Any]) -> None:
    assert re.fullmatch("[a-c]{3}", text_of(chat(tiny, **fields)))


def test_plain_text_is_free(tiny: Running) -> None:
    answer = chat(tiny, response_format={"type": "text"}, max_tokens=3, ignore_eos=True)
    assert answer.json()["usage"]["completion_tokens"] == 3


def test_the_official_client_parses_its_own_models(tiny: Running) -> None:
    with openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="none") as client:
        got = client.chat.completions.parse(
            model=NAME, messages=[{"role": "user", "content": "a"}], response_format=Answer, max_tokens=100, seed=1
        )
        assert isinstance(got.choices[0].message.parsed, Answer)
        stream = client.completions.create(
            model=NAME, prompt="a", max_tokens=100, stream=True, extra_body={"guided_regex": "x{20}"}
        )
        assert "".join(chunk.choices[0].text for chunk in stream) == "x" * 20


@pytest.mark.parametrize(
    ("fields", "param", "word"),
    [
        ({"response_format": {"type": "xml"}}, "response_format", "json_schema"),
        ({"response_format": "json"}, "response_format", "type"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format", "schema"),
        ({"response_format": {"type": "json_object", "schema": {}}}, "response_format", "no more"),
        ({"response_format": {"type": "json", "schema": 3}}, "response_format", "dict"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "response_format", "not several"),
        ({"guided_choice": []}, "guided_choice", "choice"),
        ({"guided_json": "{"}, "guided_json", "json"),
        ({"response_format": {"type": "json", "schema": {"not": {}}}}, "json", "not"),
        ({"guided_regex": "[0-"}, "regex", "regex"),
        ({"response_format": {"type": "structural_tag", "format": {}}}, "structural_tag", "xgrammar"),
        ({"guided_regex": "a", "ignore_eos": True}, "guided_decoding", "end token"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_a_400(tiny: Running, fields: dict[str, Any], param: str, word: str, stream: bool) -> None:
    answer = chat(tiny, **fields, stream=stream)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert word in error["message"]
    assert error["param"] == param
