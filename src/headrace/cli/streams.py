"""Following several requests at once, and showing them: live, one after the other, or as JSON lines."""

from __future__ import annotations

import asyncio
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from headrace.core.clock import Clock
from headrace.core.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.engine.results import CompletionOutput, RequestOutput


@dataclass(slots=True)
class Stream:
    """A request being followed. Times are clock readings."""

    prompt: str
    """What is shown of the prompt."""
    output: RequestOutput
    submitted: float
    first_token: float | None = None
    last_token: float | None = None
    error: HeadraceError | None = None

    @property
    def n_tokens(self) -> int:
        return sum(one.length for one in self.output.outputs)

    @property
    def to_first_token(self) -> float | None:
        """Seconds."""
        return None if self.first_token is None else self.first_token - self.submitted

    @property
    def rate(self) -> float | None:
        """Tokens a second after the first."""
        if self.first_token is None or self.last_token is None or self.last_token <= self.first_token:
            return None
        return (self.n_tokens - len(self.output.outputs)) / (self.last_token - self.first_token)

    def mark(self, now: float) -> None:
        """Something has arrived."""
        if self.n_tokens:
            self.first_token = now if self.first_token is None else self.first_token
            self.last_token = now


class View(Protocol):
    """Shows streams. ``update`` follows every step of a stream, the last one included."""

    def __enter__(self) -> View: ...

    def __exit__(self, *exc: object) -> None: ...

    def update(self, stream: Stream) -> None: ...


async def _follow_one(stream: Stream, view: View, clock: Clock) -> None:
    try:
        async for _ in stream.output:
            stream.mark(clock.now())
            view.update(stream)
    except HeadraceError as error:
        # Only this request has failed; the others go on.
        stream.error = error
        view.update(stream)


def follow(streams: Sequence[Stream], view: View, clock: Clock) -> None:
    """Shows all streams until each has ended. On Ctrl-C cancels them and raises ``KeyboardInterrupt``."""

    async def run() -> None:
        await asyncio.gather(*(_follow_one(stream, view, clock) for stream in streams))

    try:
        with view:
            asyncio.run(run())
    except BaseException:
        for stream in streams:
            stream.output.abort()
        raise


class PlainView:
    """Texts one after the other: the first grows as it comes (``live``), the others wait for their turn."""

    def __init__(self, streams: Sequence[Stream], file: TextIO, *, live: bool = True) -> None:
        self._panes = [(stream, one) for stream in streams for one in stream.output.outputs]
        self._file = file
        self._live = live
        self._current = 0
        self._written = 0

    def __enter__(self) -> PlainView:
        self._head()
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.flush()

    def update(self, stream: Stream) -> None:
        while self._current < len(self._panes):
            owner, output = self._panes[self._current]
            ended = output.finish_reason is not None or owner.error is not None
            if self._live or ended:
                self._file.write(output.text[self._written :])
                self._written = len(output.text)
            if not ended:
                break
            self._file.write("\n")
            self._current, self._written = self._current + 1, 0
            self._head()
        self._file.flush()

    def _head(self) -> None:
        if len(self._panes) > 1 and self._current < len(self._panes):
            stream, output = self._panes[self._current]
            self._file.write("\n" * (self._current > 0) + f"[{_title(stream, output)}]\n")


class LiveView:
    """A panel for each output, all growing at once; whole texts stay on the screen at the end."""

    def __init__(self, streams: Sequence[Stream], console: Console) -> None:
        self._panes = [(stream, one) for stream in streams for one in stream.output.outputs]
        self._console = console
        # The display asks for the panels when it draws, so tokens that come faster cost nothing.
        self._live = Live(console=console, transient=True, refresh_per_second=10, get_renderable=self._growing)

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()
        for stream, output in self._panes:
            self._console.print(self._panel(stream, output, Text(output.text.strip())))

    def update(self, stream: Stream) -> None:
        """Nothing to do: the next drawing shows it."""

    def _growing(self) -> Group:
        """The last lines of every text, as many as the screen has room for."""
        lines = max(1, (self._console.height - 1) // len(self._panes) - 2)
        shown = self._panes[: max(1, (self._console.height - 1) // 3)]
        panels = []
        for stream, output in shown:
            wrapped = Text(output.text.strip()).wrap(self._console, self._console.width - 4)
            panels.append(self._panel(stream, output, Text("\n").join(wrapped[-lines:])))
        return Group(*panels)

    def _panel(self, stream: Stream, output: CompletionOutput, text: Text) -> Panel:
        state = str(stream.error) if stream.error else _state(stream, output)
        return Panel(
            text,
            title=Text(_title(stream, output), style="bold"),
            title_align="left",
            subtitle=Text(state, style="red" if stream.error else "dim"),
            subtitle_align="right",
            border_style="red" if stream.error else "green" if output.finish_reason else "blue",
        )


class JsonView:
    """One JSON line for each request, when it has ended."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def __enter__(self) -> JsonView:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.flush()

    def update(self, stream: Stream) -> None:
        if stream.error is not None or stream.output.finished:
            self._file.write(json.dumps(as_json(stream), ensure_ascii=False) + "\n")
            self._file.flush()


def as_json(stream: Stream) -> dict[str, Any]:
    """A finished stream as plain data. Times in seconds."""
    output = stream.output
    return {
        "prompt": stream.prompt,
        "prompt_tokens": len(output.prompt_token_ids),
        "cached_tokens": output.cached_tokens,
        "cache_miss": output.cache_miss,
        "seed": output.seed,
        "outputs": [_output_json(one) for one in output.outputs],
        "time_to_first_token": stream.to_first_token,
        "tokens_per_second": stream.rate,
        "error": str(stream.error) if stream.error else None,
    }


def _output_json(output: CompletionOutput) -> dict[str, Any]:
    made: dict[str, Any] = {
        "text": output.text,
        "token_ids": output.token_ids,
        "finish_reason": output.finish_reason,
        "stop_reason": output.stop_reason,
    }
    if output.logprobs:
        made["logprobs"] = [_logprobs_json(entry) for entry in output.logprobs]
    if output.prompt_logprobs:
        made["prompt_logprobs"] = [entry and _logprobs_json(entry) for entry in output.prompt_logprobs]
    return made


def _logprobs_json(entry: dict[int, Any]) -> dict[str, dict[str, float]]:
    return {str(token): {"logprob": one.logprob, "rank": one.rank} for token, one in entry.items()}


def summary(streams: Sequence[Stream]) -> str:
    """One line: how much was generated and how fast."""
    tokens = sum(stream.n_tokens for stream in streams)
    ends = [stream.last_token for stream in streams if stream.last_token is not None]
    firsts = [seconds for stream in streams if (seconds := stream.to_first_token) is not None]
    if not ends:
        return "no tokens"
    seconds = max(ends) - min(stream.submitted for stream in streams)
    cached = sum(stream.output.cached_tokens for stream in streams)
    text = f"{tokens} tokens in {seconds:.2f} s: {tokens / seconds:.1f} tokens/s"
    text += f"; first token after {statistics.median(firsts):.2f} s"
    text += " (median)" if len(firsts) > 1 else ""
    return text + (f"; {cached} prompt tokens from the cache" if cached else "")


def _title(stream: Stream, output: CompletionOutput) -> str:
    """The prompt on one line, and which of several outputs it is."""
    line = " ".join(stream.prompt.split())
    line = line if len(line) <= 70 else line[:67] + "..."
    return f"{line} #{output.index + 1}" if len(stream.output.outputs) > 1 else line


def _state(stream: Stream, output: CompletionOutput) -> str:
    if not output.length:
        return "waiting"
    rate = f", {stream.rate:.1f} tokens/s" if stream.rate is not None and len(stream.output.outputs) == 1 else ""
    end = f", {output.finish_reason}" if output.finish_reason else ""
    return f"{output.length} token{'s' * (output.length > 1)}{rate}{end}"
