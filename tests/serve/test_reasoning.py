"""Thinking apart from answers: the split of any pieces of text, and chat answers, guided and free."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving_rig import CONFIG, NAME, TEMPLATE, VOCAB, Running, served

from headrace.core.reasoning import PARSERS, THINK, Reasoning, Start
from headrace.serve.reasoning import Split
from tiny_text import write_tokenizer

BEGIN, END = VOCAB - 2, VOCAB - 1
REASONING = Reasoning(THINK, BEGIN, END, False, frozenset((10, 11)))


@pytest.mark.parametrize(
    ("start", "text", "parts"),
    [
        (Start.INSIDE, "so\n</think>\n\n42", ("so\n", "\n\n42")),
        (Start.INSIDE, "<think>so</think>42", ("so", "42")),
        (Start.INSIDE, "\n so </thin", ("\n so </thin", "")),
        (Start.INSIDE, "</think>", ("", "")),
        (Start.UNDECIDED, " <think>a</think>b</think>c", ("a", "b</think>c")),
        (Start.UNDECIDED, "<thin", ("", "<thin")),
        (Start.UNDECIDED, "  x<think>a</think>b", ("", "  x<think>a</think>b")),
        (Start.AFTER, "<think>a</think>b", ("", "<think>a</think>b")),
        (Start.INSIDE, "a</</think></think>", ("a</", "</think>")),
        (Start.UNDECIDED, "", ("", "")),
    ],
)
def test_the_parts_do_not_depend_on_the_pieces(start: Start, text: str, parts: tuple[str, str]) -> None:
    chance = random.Random(1)
    for turn in range(50):
        split, got = Split(REASONING, start), ["", ""]
        cuts = sorted(chance.randrange(len(text) + 1) for _ in range(turn % 8))
        for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            for place, piece in enumerate(split.push(text[begin:end], False)):
                got[place] += piece
        for place, piece in enumerate(split.push("", True)):
            got[place] += piece
        assert tuple(got) == parts


def test_what_a_prompt_says_of_the_beginning() -> None:
    assert REASONING.start([5, BEGIN, 10, 11]) is Start.INSIDE
    assert REASONING.start([BEGIN, 10, END, 10]) is Start.AFTER
    assert REASONING.start([BEGIN, END, 5, 10]) is Start.UNDECIDED
    assert REASONING.start([10]) is Start.UNDECIDED
    always = Reasoning(THINK, BEGIN, END, PARSERS["deepseek-r1"][1], frozenset((10,)))
    assert always.start([BEGIN, END, 5]) is Start.INSIDE


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder: Path = tmp_path_factory.mktemp("thinker")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    marks = "{{ '<think>' if enable_thinking else '<think>\n\n</think>\n\n' }}"
    ending = "{% if enable_thinking is defined %}" + marks + "{% endif %}"
    write_tokenizer(folder, BEGIN, TEMPLATE + ending, beyond=("<think>", "</think>"))
    with served(folder, reasoning_parser="auto") as running:
        yield running
        running.idle()


def _ask(thinker: Running, stream: bool, **fields: Any) -> tuple[str | None, str, dict[str, Any]]:
    """(thinking, answer, last usage) of a chat answer."""
    body = {
        "model": NAME,
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 60,
        "seed": 4,
        "stream": stream,
    }
    if stream:
        body["stream_options"] = {"include_usage": True}
    answer = thinker.post("/v1/chat/completions", body | fields)
    assert answer.status_code == 200, answer.text
    if not stream:
        (choice,) = answer.json()["choices"]
        return choice["message"].get("reasoning_content"), choice["message"]["content"], answer.json()["usage"]
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    thinking = "".join(delta.get("reasoning_content", "") for delta in deltas)
    return thinking or None, "".join(delta.get("content", "") for delta in deltas), events[-1]["usage"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("thinks", [True, False])
def test_a_guided_answer_comes_after_the_thinking(thinker: Running, stream: bool, thinks: bool) -> None:
    thinking, text, usage = _ask(
        thinker,
        stream,
        response_format={"type": "regex", "regex": "[a-c]{3}"},
        logit_bias={str(END): 4.0},
        chat_template_kwargs={"enable_thinking": thinks},
    )
    assert re.fullmatch("[a-c]{3}", text)
    assert bool(thinking) == thinks
    if thinks:
        assert "think>" not in thinking
        assert usage["completion_tokens"] > 6


def test_a_stream_says_what_a_whole_answer_says(thinker: Running) -> None:
    kinds = set()
    for seed in range(12):
        options = {"seed": seed, "ignore_eos": True, "logit_bias": {str(END): 3.0}}
        if seed % 2:
            options["chat_template_kwargs"] = {"enable_thinking": True}
        whole, streamed = (_ask(thinker, stream, **options) for stream in (False, True))
        assert whole[:2] == streamed[:2]
        assert whole[2]["completion_tokens"] == streamed[2]["completion_tokens"]
        kinds.add((whole[0] is not None, bool(whole[1])))
    assert {(True, True), (False, True)} <= kinds


def test_what_an_assistant_thought_reaches_the_template(thinker: Running) -> None:
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning_content": "c"},
        {"role": "user", "content": "d"},
    ]
    answer = thinker.post("/v1/chat/completions", {"model": NAME, "messages": turns, "max_tokens": 1})
    assert answer.status_code == 200, answer.text
