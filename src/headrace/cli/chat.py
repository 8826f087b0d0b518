"""``headrace chat``: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli import console
from headrace.cli.options import DEFAULT_MODEL, sampling_params, with_engine_options, with_sampling_options
from headrace.cli.prompts import Message
from headrace.cli.start import started
from headrace.cli.streams import Stream, summary
from headrace.core.clock import Clock, SystemClock
from headrace.core.errors import ModelError, RequestError
from headrace.core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from headrace.llm import LLM

DEFAULT_MAX_TOKENS = 1024
HELP = """/reset          forget the conversation
/system TEXT    set the system message (and forget the conversation); without TEXT: remove it
/save FILE      write the conversation as JSON
/help           this list
/exit           leave (or Ctrl-D)
A line that ends with \\ goes on in the next one. Ctrl-C stops an answer."""


@with_engine_options
@with_sampling_options
def chat(
    model: Annotated[str, typer.Argument(help="Built-in name, folder, .gguf file or hub id.")] = DEFAULT_MODEL,
    *,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the answers.")] = False,
    sampling: dict[str, Any],
    engine: dict[str, Any],
) -> None:
    """Talk with a model. Type /help for what can be typed besides."""
    params = sampling_params(sampling, max_tokens=DEFAULT_MAX_TOKENS, add_special_tokens=False)
    if params.n != 1:
        raise RequestError(f"n={params.n}: a conversation goes on from one answer; leave --n out", param="n")
    clock = SystemClock()
    with started(model, engine, quiet=quiet, clock=clock) as llm:
        if llm.tokenizer is None or not llm.tokenizer.has_chat_template:
            raise ModelError(f"{model} has no chat template; use `headrace generate --raw`")
        talk = Conversation(llm, params, clock, system=system, quiet=quiet)
        if not quiet:
            console.note("/help lists the commands, Ctrl-D leaves")
        for text in _lines():
            if not talk.take(text):
                break


class Conversation:
    """The messages so far, and what a typed line does to them."""

    def __init__(self, llm: LLM, params: SamplingParams, clock: Clock, *, system: str | None, quiet: bool) -> None:
        self._llm = llm
        self._params = params
        self._clock = clock
        self._system = system
        self._quiet = quiet
        self.messages: list[Message] = []
        self._commands: dict[str, Callable[[str], None]] = {
            "reset": self._reset,
            "system": self._set_system,
            "save": self._save,
            "help": lambda _: console.note(HELP),
        }

    def take(self, text: str) -> bool:
        """Does what a line asks for: a command, or an answer. False: leave."""
        if not text.strip():
            return True
        if text.startswith("/"):
            name, _, rest = text[1:].partition(" ")
            if name in ("exit", "quit"):
                return False
            command = self._commands.get(name)
            if command is None:
                console.error(f"there is no command /{name}; /help lists them")
            else:
                command(rest.strip())
            return True
        self._answer(text)
        return True

    def _answer(self, text: str) -> None:
        """Generates the answer to ``text``; what was said of it stays in the conversation even when it was stopped."""
        asked = [*self.messages, {"role": "user", "content": text}]
        head = [{"role": "system", "content": self._system}] if self._system else []
        tokenizer = self._llm.tokenizer
        assert tokenizer is not None
        try:
            prompt = tokenizer.chat([*head, *asked])
            now = self._clock.now()
            stream = Stream(text, self._llm.generate_async(prompt, self._params, streaming=True), now)
            self._print(stream)
        except RequestError as error:
            # The conversation stays as it was before, so that another line may do better.
            console.error(f"{error}{' Type /reset to start afresh.' if self.messages else ''}")
            return
        self.messages = [*asked, {"role": "assistant", "content": stream.output.outputs[0].text}]
        if not self._quiet:
            console.note(summary([stream]))

    def _print(self, stream: Stream) -> None:
        try:
            for output in stream.output:
                stream.mark(self._clock.now())
                sys.stdout.write(output.outputs[0].text_diff)
                sys.stdout.flush()
        except KeyboardInterrupt:
            stream.output.abort()
            stream.output.result()
        print()

    def _reset(self, _: str) -> None:
        self.messages = []
        console.note("forgotten")

    def _set_system(self, text: str) -> None:
        self._system = text or None
        self.messages = []
        console.note("system message set" if text else "system message removed")

    def _save(self, name: str) -> None:
        if not name:
            console.error("/save needs a file name")
            return
        head = [{"role": "system", "content": self._system}] if self._system else []
        document = json.dumps({"messages": head + self.messages}, indent=2, ensure_ascii=False)
        try:
            Path(name).expanduser().write_text(document + "\n", encoding="utf-8")
        except OSError as error:
            console.error(f"cannot write {name}: {error}")
            return
        console.note(f"wrote {len(self.messages)} messages to {name}")


def _lines() -> Iterator[str]:
    """What is typed, line by line; a line that ends with a backslash goes on in the next one."""
    on_terminal = sys.stdin.isatty()
    if on_terminal:
        # Line editing and history, where Python was built with it.
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401
    parts: list[str] = []
    while True:
        try:
            line = input(("... " if parts else "> ") if on_terminal else "")
        except EOFError:
            if parts:
                yield "\n".join(parts)
            return
        if line.endswith("\\"):
            parts.append(line[:-1])
            continue
        yield "\n".join([*parts, line])
        parts = []
