"""Prompts to learn from, and the model's own answers to them."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from headrace.core.errors import ConfigError
from headrace.core.sampling_params import SamplingParams

from .lessons import Conversation, Recorded

if TYPE_CHECKING:
    from headrace.llm import LLM

Entry: TypeAlias = "str | list[dict[str, Any]] | Conversation"
"""A prompt, the messages of a chat, or what has an answer."""

_TEMPERATURES = (0.0, 0.0, 0.0, 0.0, 0.7, 1.0)
"""Of answers, in turn: most of them greedy."""
_PROMPT_TOKENS = 64
_PROMPT_CHARACTERS = range(12, 400)
"""Of a prompt that the model makes up."""
_AT_ONCE = 64


def read_data(path: Path) -> list[Entry]:
    """Prompts, messages, and conversations that are complete.

    A ``.jsonl`` file has an object a line: ``{"prompt": text}``, ``{"messages": [...]}`` as in a chat request, or
    ``{"tokens": [...], "prompt_tokens": n, "temperature": t}``, which an earlier run has answered. Any other file is
    text with a prompt a line. A folder has the files that ``SaveHiddenStatesDecodingConfig`` writes. Raises
    ``ConfigError``, naming the line or the file.
    """
    if path.is_dir():
        return _recorded(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--data {path}: {error}") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            found.append(_entry(line, f"--data {path}, line {number}") if path.suffix == ".jsonl" else line.strip())
    if not found:
        raise ConfigError(f"--data {path}: there is no prompt in it")
    return found


def _recorded(folder: Path) -> list[Entry]:
    """Conversations with their states, in the order of the files' names."""
    paths = sorted(folder.glob("*.pt"), key=lambda path: (len(path.name), path.name))
    if not paths:
        raise ConfigError(f"--data {folder}: there are no .pt files in it; SaveHiddenStatesDecodingConfig writes them")
    found: list[str | list[dict[str, Any]] | Conversation] = []
    for path in paths:
        try:
            found.extend(
                Recorded(
                    tuple(one["input_ids"].tolist()),
                    one["prompt_tokens"],
                    one["temperature"],
                    tuple(one["layers"]),
                    one["aux_hidden_states"],
                    one["hidden_state"],
                )
                for one in torch.load(path, weights_only=True)
            )
        except (OSError, RuntimeError, pickle.UnpicklingError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"--data {path}: not hidden states: {type(error).__name__}: {error}") from None
    return found


def _entry(line: str, where: str) -> Entry:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    match entry:
        case {"tokens": [*tokens], "prompt_tokens": int(n_prompt)} if 0 < n_prompt < len(tokens):
            return Conversation(tuple(tokens), n_prompt, float(entry.get("temperature", 0.0)))
        case {"prompt": str(prompt)}:
            return prompt
        case {"messages": [*messages]} if messages:
            return messages
    raise ConfigError(f'{where}: expected {{"prompt": ...}}, {{"messages": [...]}}, or tokens with prompt_tokens')


def made_up(llm: LLM, n: int, seed: int, on_prompts: Callable[[int], None] = lambda found: None) -> list[Entry]:
    """``n`` prompts that the model makes up: it goes on where its chat template has the user speak (Magpie, arXiv
    2406.08464). ``on_prompts`` hears how many there are. Raises ``ConfigError`` for a model that asks too little."""
    tokenizer, rng, found, mark = llm.tokenizer, random.Random(seed), dict[str, None](), "@@@"
    if tokenizer is None or not tokenizer.has_chat_template:
        raise ConfigError("--own-prompts: the model has no chat template in which a user could ask; give --data")
    before = tokenizer.chat([{"role": "user", "content": mark}]).partition(mark)[0]
    start = tokenizer.encode(before, add_special_tokens=False)
    for _ in range(-(-4 * n // _AT_ONCE)):
        params = [
            SamplingParams(max_tokens=_PROMPT_TOKENS, temperature=1.0, top_p=0.97, seed=rng.getrandbits(63))
            for _ in range(_AT_ONCE)
        ]
        for output in llm.generate([start] * _AT_ONCE, params, use_tqdm=False):
            text = output.outputs[0].text.strip()
            if output.outputs[0].finish_reason == "stop" and len(text) in _PROMPT_CHARACTERS:
                found[text] = None
        on_prompts(min(n, len(found)))
        if len(found) >= n:
            return list(found)[:n]
    raise ConfigError(
        f"--own-prompts {n}: in {4 * n} attempts the model made up {len(found)} prompts that end and are of"
        f" {_PROMPT_CHARACTERS.start} to {_PROMPT_CHARACTERS.stop} characters; give fewer, or --data"
    )


def answered(
    llm: LLM,
    data: Sequence[Entry],
    max_tokens: int,
    seed: int,
    on_answers: Callable[[Sequence[Conversation]], None],
) -> list[Conversation]:
    """All of ``data`` as conversations: what has no answer gets one from the model, through its chat template."""
    tokenizer, rng = llm.tokenizer, random.Random(seed)
    assert tokenizer is not None
    done = [one for one in data if isinstance(one, Conversation)]
    on_answers(done)
    asked = [
        one if isinstance(one, list) else [{"role": "user", "content": one}]
        for one in data
        if not isinstance(one, Conversation)
    ]
    prompts = [
        tokenizer.chat(messages)
        if tokenizer.has_chat_template
        else tokenizer.encode("\n".join(str(message["content"]) for message in messages))
        for messages in asked
    ]
    for first in range(0, len(prompts), _AT_ONCE):
        some = prompts[first : first + _AT_ONCE]
        temperatures = [_TEMPERATURES[(first + i) % len(_TEMPERATURES)] for i in range(len(some))]
        params = [
            SamplingParams(max_tokens=max_tokens, temperature=t, seed=rng.getrandbits(63), detokenize=False)
            for t in temperatures
        ]
        outputs = llm.generate(some, params, use_tqdm=False)
        new = [
            Conversation((*output.prompt_token_ids, *output.outputs[0].token_ids), len(output.prompt_token_ids), t)
            for output, t in zip(outputs, temperatures, strict=True)
        ]
        done += new
        on_answers(new)
    return done


def write_answers(path: Path, conversations: Sequence[Conversation]) -> None:
    """As ``read_data`` reads them."""
    with path.open("a", encoding="utf-8") as file:
        for one in conversations:
            entry = {"tokens": one.tokens, "prompt_tokens": one.n_prompt, "temperature": one.temperature}
            file.write(json.dumps(entry) + "\n")
