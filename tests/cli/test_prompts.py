"""Prompts from files, and what is wrong with a file is said with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.cli.prompts import UserPrompt, read_prompts
from headrace.core.errors import RequestError


def test_words_come_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        '{"prompt": "a\\nb"}\n\n{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}\n'
    )
    found = read_prompts(["first"], file)
    assert [prompt.text for prompt in found] == ["first", "a\nb", "u"]
    assert found[0] == UserPrompt("first")
    assert [message["role"] for message in found[2].messages] == ["system", "user"]


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"prompt": 3}', '{"messages": []}', '{"messages": ["x"]}', '{"text": "x"}']
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"prompt": "fine"}}\n{line}\n')
    with pytest.raises(RequestError, match="line 2"):
        read_prompts([], file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="absent"):
        read_prompts([], tmp_path / "absent")


def test_no_prompt_at_all_says_how_to_give_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    with empty.open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        with pytest.raises(RequestError, match="--prompt-file"):
            read_prompts([], None)
