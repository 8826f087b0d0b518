"""Templates render as the reference renders them; what they refuse is the request's error."""

from __future__ import annotations

import copy
import datetime
from typing import Any

import jinja2
import minijinja
import pytest
from templates import ALL, CONVERSATIONS, TOOLS
from transformers.utils.chat_template_utils import render_jinja_template

from headrace.core.errors import RequestError
from headrace.tokenizer.chat_template import ChatTemplate, _Refusal, jinja2_renderer, minijinja_renderer

DAY = datetime.datetime(2026, 1, 2, 3, 4)


def now() -> datetime.datetime:
    return DAY


def render(source: str, **variables: Any) -> str:
    variables.setdefault("messages", [{"role": "user", "content": "Hi"}])
    return ChatTemplate(source, {"bos_token": "<s>"}, now).render(**variables)


def outcome(renderer: Any, variables: dict[str, Any]) -> tuple[str, str]:
    try:
        return "text", renderer(copy.deepcopy(variables))
    except _Refusal as refusal:
        return "refused", str(refusal)
    except (minijinja.TemplateError, jinja2.TemplateError, TypeError):
        return "failed", ""


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_both_engines_agree(name: str, conversation: str, add_generation_prompt: bool) -> None:
    variables = {
        "bos_token": "<s>",
        "tools": None,
        **CONVERSATIONS[conversation],
        "add_generation_prompt": add_generation_prompt,
    }
    first, second = minijinja_renderer(ALL[name], now), jinja2_renderer(ALL[name], now)
    assert outcome(first, variables) == outcome(second, variables)


@pytest.mark.parametrize(
    ("name", "conversation"),
    [
        ("chatml", "one"),
        ("chatml", "system"),
        ("thinking", "system"),
        ("thinking", "tools"),
        ("thinking", "no_thinking"),
        ("turns", "turns"),
    ],
)
def test_the_text_is_that_of_transformers(name: str, conversation: str) -> None:
    variables = dict(CONVERSATIONS[conversation])
    messages, tools = variables.pop("messages"), variables.pop("tools", None)
    expected, _ = render_jinja_template(
        [messages], tools=tools, chat_template=ALL[name], add_generation_prompt=True, bos_token="<s>", **variables
    )
    found = render(ALL[name], messages=messages, tools=tools, add_generation_prompt=True, **variables)
    assert found == expected[0]


def test_tools_and_the_date() -> None:
    text = render(ALL["headers"], messages=CONVERSATIONS["one"]["messages"], tools=TOOLS, add_generation_prompt=True)
    assert text.startswith("<s><|header|>system<|/header|>\n\nToday: 02 Jan 2026\n")
    assert '            "properties": {\n' in text
    assert 'in m & \\"cm\\" <now>: déjà vu' in text


def test_a_refusal_carries_the_templates_words() -> None:
    with pytest.raises(RequestError, match="refuses the messages: one call at a time, not 2") as caught:
        render(ALL["headers"], **CONVERSATIONS["two_calls"], tools=None)
    assert caught.value.param == "messages"
    with pytest.raises(RequestError, match="roles must take turns"):
        render(ALL["turns"], messages=[{"role": "assistant", "content": "Hi"}])


def test_what_minijinja_does_not_know_goes_to_jinja2() -> None:
    source = "{% generation %}{{ messages[0].content }}{% endgeneration %}{{ '%s-%d' % ('a', 3) }}"
    with pytest.raises(minijinja.TemplateError):
        minijinja_renderer(source, now)
    assert render(source) == "Hia-3"
    # Compiles in minijinja, fails when rendered.
    assert render("{{ '%s-%d' % ('a', 3) }}") == "a-3"
    refusing = "{% generation %}{{ raise_exception('no') }}{% endgeneration %}"
    with pytest.raises(RequestError, match="refuses the messages: no"):
        render(refusing)


@pytest.mark.parametrize("source", ["{% for", "{{ a b }}", "{% unknown %}"])
def test_a_source_that_does_not_compile(source: str) -> None:
    with pytest.raises(RequestError, match="does not compile") as caught:
        render(source)
    assert caught.value.param == "chat_template"


@pytest.mark.parametrize("source", ["{{ messages[0].a.b }}", "{{ messages[0].content + 1 }}", "{{ 1 / 0 }}"])
def test_a_source_that_fails(source: str) -> None:
    with pytest.raises(RequestError, match="the chat template failed: "):
        render(source)


def test_loop_controls() -> None:
    source = "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}"
    assert render(source, messages=[{"role": "user", "content": word} for word in "abc"]) == "a"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{% generation %}{{ messages.__class__.__base__.__subclasses__() }}{% endgeneration %}",
        "{{ messages.__init__() }}",
        "{{ raise_exception.__globals__.keys() }}",
    ],
)
def test_no_way_into_python(source: str) -> None:
    with pytest.raises(RequestError, match="failed"):
        render(source)


def test_the_callers_messages_are_never_changed() -> None:
    messages = [{"role": "user", "content": "Hi", "extra": {"a": [1]}}]
    before = copy.deepcopy(messages)
    assert "2" in render(
        "{{ messages.append(1) }}{{ messages[0].extra.a.append(2) }}{{ messages|length }}", messages=messages
    )
    assert messages == before


def test_messages_and_variables_must_be_plain() -> None:
    for bad in ("Hi", [{"content": "no role"}], ["text"]):
        with pytest.raises(RequestError, match="'role'"):
            render("x", messages=bad)
    with pytest.raises(RequestError, match="'when' holds a datetime"):
        render("x", messages=[{"role": "user", "when": DAY}])
