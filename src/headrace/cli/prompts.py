"""Prompts of a command: from its arguments, a file or a pipe, and through the chat template."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.core.errors import RequestError

if TYPE_CHECKING:
    from headrace.tokenizer.tokenizer import Tokenizer

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class UserPrompt:
    """A prompt as it was given: a text, or the messages of a conversation."""

    text: str
    """What is shown of it."""
    messages: tuple[Message, ...] = ()
    """Empty: the text is the prompt."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt as the engine takes it."""

    shown: str
    text: str
    add_special_tokens: bool
    """False when a chat template has written them already."""


def read_prompts(words: Sequence[str], file: Path | None) -> list[UserPrompt]:
    """Prompts from the arguments, then the file's; from stdin, as one prompt, if there is neither and it is a pipe."""
    prompts = [UserPrompt(word) for word in words]
    if file is not None:
        prompts += _from_file(file)
    if not prompts and not sys.stdin.isatty():
        text = sys.stdin.read().strip()
        prompts += [UserPrompt(text)] if text else []
    if not prompts:
        raise RequestError(
            'no prompt was given: headrace generate MODEL "PROMPT" ..., --prompt-file FILE, or text through a pipe'
        )
    return prompts


def _from_file(file: Path) -> list[UserPrompt]:
    """One prompt a line; in a .jsonl file a line is {"prompt": text} or {"messages": [...]}. "-" is stdin."""
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"--prompt-file {file}: {error}") from None
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if file.suffix != ".jsonl":
        return [UserPrompt(line) for _, line in lines]
    return [_from_json(line, f"{file}, line {number}") for number, line in lines]


def _from_json(line: str, where: str) -> UserPrompt:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise RequestError(f"{where} is not JSON: {error}") from None
    match value:
        case {"prompt": str(text)}:
            return UserPrompt(text)
        case {"messages": [{"content": _}, *_] as messages}:
            return UserPrompt(str(messages[-1].get("content", "")), tuple(messages))
    raise RequestError(f'{where}: expected {{"prompt": text}} or {{"messages": [{{"role": ..., "content": ...}}]}}')


def render(prompt: UserPrompt, tokenizer: Tokenizer | None, *, chat: bool | None, system: str | None) -> Rendered:
    """Puts a prompt through the chat template.

    ``chat`` None: if the model has one. Raises ``RequestError`` when a template is asked for and there is none.
    """
    has_template = tokenizer is not None and tokenizer.has_chat_template
    wanted = has_template if chat is None else chat
    if not wanted:
        if prompt.messages or system:
            raise RequestError(
                "messages and --system need a chat template: leave --raw out, or take a model that has one"
            )
        return Rendered(prompt.text, prompt.text, add_special_tokens=True)
    if tokenizer is None or not has_template:
        raise RequestError("this model has no chat template: leave --chat out and give the whole text with --raw")
    messages = list(prompt.messages) or [{"role": "user", "content": prompt.text}]
    if system and messages[0].get("role") != "system":
        messages.insert(0, {"role": "system", "content": system})
    return Rendered(prompt.text, tokenizer.chat(messages), add_special_tokens=False)
