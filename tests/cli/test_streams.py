"""Following streams: real outputs, fed by hand."""

from __future__ import annotations

import asyncio
import io
import json
import signal
from collections.abc import Callable

import pytest
from rich.console import Console

from headrace.cli.streams import JsonView, LiveView, PlainView, Stream, View, follow, summary
from headrace.core.clock import VirtualClock
from headrace.core.errors import RequestError
from headrace.engine.results import Mailbox, OutputEvent, RequestOutput


class Fed:
    """A stream whose events come from the test."""

    def __init__(self, prompt: str, *, n: int = 1, submitted: float = 0.0) -> None:
        self.aborted: list[int] = []
        self._mailbox = Mailbox()
        self._output = RequestOutput(1, prompt, [1, 2, 3], n, 9, self.aborted.append, self._mailbox, True)
        self.stream = Stream(prompt, self._output, submitted)

    def say(self, text: str, *, index: int = 0, end: str | None = None, error: Exception | None = None) -> None:
        tokens = tuple(range(len(text.split())))
        self._mailbox.post([OutputEvent(index, text, tokens, finish_reason=end, error=error)])


def _play(streams: list[Fed], view: View, script: list[Callable[[], None]]) -> VirtualClock:
    """Follows the streams, with one act of the script a second."""
    clock = VirtualClock()
    watching = [fed.stream for fed in streams]

    async def run() -> None:
        from headrace.cli.streams import _follow_one

        following = asyncio.gather(*(_follow_one(stream, view, clock) for stream in watching))
        for act in script:
            clock.advance(1.0)
            act()
            for _ in range(5):
                await asyncio.sleep(0)
        await asyncio.wait_for(following, 5)

    with view:
        asyncio.run(run())
    return clock


def test_the_first_text_grows_and_the_second_waits_its_turn() -> None:
    one, two = Fed("one"), Fed("two")
    file = io.StringIO()
    seen: list[str] = []
    script = [
        lambda: two.say("later text", end="stop"),
        lambda: one.say("early "),
        lambda: seen.append(file.getvalue()),
        lambda: one.say("text", end="length"),
    ]
    _play([one, two], PlainView([one.stream, two.stream], file), script)
    assert seen == ["[one]\nearly "]
    assert file.getvalue() == "[one]\nearly text\n\n[two]\nlater text\n"


def test_text_comes_whole_when_it_is_not_streamed() -> None:
    one = Fed("one")
    file = io.StringIO()
    seen: list[str] = []
    script = [lambda: one.say("early "), lambda: seen.append(file.getvalue()), lambda: one.say("text", end="stop")]
    _play([one], PlainView([one.stream], file, live=False), script)
    assert seen == [""]
    assert file.getvalue() == "early text\n"


def test_every_output_of_a_prompt_is_shown() -> None:
    one = Fed("one", n=2)
    file = io.StringIO()
    script = [lambda: one.say("b", index=1, end="stop"), lambda: one.say("a", end="stop")]
    _play([one], PlainView([one.stream], file), script)
    assert file.getvalue() == "[one #1]\na\n\n[one #2]\nb\n"


def test_a_request_that_fails_leaves_the_others_alone() -> None:
    one, two = Fed("one"), Fed("two")
    file = io.StringIO()
    script = [
        lambda: one.say("", error=RequestError("no more")),
        lambda: two.say("fine", end="stop"),
    ]
    _play([one, two], JsonView(file), script)
    rows = {row["prompt"]: row for row in map(json.loads, file.getvalue().splitlines())}
    assert rows["one"]["error"] == "no more"
    assert rows["two"]["error"] is None
    assert rows["two"]["outputs"][0]["text"] == "fine"


def test_times_are_those_of_the_clock() -> None:
    one = Fed("one")
    script = [lambda: None, lambda: one.say("a"), lambda: one.say("b"), lambda: one.say("c d e", end="length")]
    _play([one], JsonView(io.StringIO()), script)
    assert one.stream.to_first_token == 2.0
    assert one.stream.rate == 4 / 2.0
    assert summary([one.stream]).startswith("5 tokens in 4.00 s: 1.2 tokens/s; first token after 2.00 s")


@pytest.mark.parametrize("height", [8, 24])
def test_the_live_view_leaves_whole_texts_behind(height: int) -> None:
    fed = [Fed(f"prompt {number}") for number in range(4)]
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=60, height=height, color_system=None)
    long = " ".join(f"word{number}" for number in range(80))

    def say_all(end: str | None) -> None:
        for one in fed:
            one.say(long, end=end)

    _play(fed, LiveView([one.stream for one in fed], console), [lambda: say_all("length")])
    final = file.getvalue()
    for number in range(4):
        assert f"prompt {number}" in final
    assert final.count("word79") >= 4
    assert "80 tokens" in final


def test_an_interrupt_cancels_every_stream() -> None:
    fed = [Fed("one"), Fed("two")]

    class Interrupted(JsonView):
        def update(self, stream: Stream) -> None:
            signal.raise_signal(signal.SIGINT)

    fed[0].say("a")
    with pytest.raises(KeyboardInterrupt):
        follow([one.stream for one in fed], Interrupted(io.StringIO()), VirtualClock())
    assert [one.aborted for one in fed] == [[1], [1]]
