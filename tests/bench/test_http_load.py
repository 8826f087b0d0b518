"""Load over HTTP against a server that plays a script: what is timed, what is counted, and how failures are named."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from headrace.bench.http_client import HttpFailure, Target, events, get_json
from headrace.bench.http_load import Arrivals, Outcome, measure, run_http_load
from headrace.bench.load import Timing
from headrace.core.clock import SystemClock
from headrace.core.errors import ConfigError

CLOCK = SystemClock()
Script = Callable[[str, dict[str, Any], asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(script: Script) -> AsyncIterator[tuple[Target, list[str]]]:
    """(where it listens, the heads of the requests that came)."""
    heads: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        heads.append(head)
        lengths = [line for line in head.splitlines() if line.lower().startswith("content-length")]
        body = await reader.readexactly(int(lengths[0].split(":")[1])) if lengths else b"{}"
        await script(head.split()[1], json.loads(body), writer)
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with listening:
        yield Target.of(f"http://127.0.0.1:{port}/v1", "secret"), heads


def head(status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n".encode()


def chunk(*parts: bytes) -> bytes:
    data = b"".join(parts)
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def event(text: str | None, usage: dict[str, Any] | None = None) -> bytes:
    choices = [] if text is None else [{"index": 0, "text": text}]
    return b"data: " + json.dumps({"choices": choices, "usage": usage}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
END = b"0\r\n\r\n"


def used(n: int) -> dict[str, Any]:
    return {"prompt_tokens": 7, "completion_tokens": n, "prompt_tokens_details": {"cached_tokens": 4}}


def play(*pieces: bytes | float) -> Script:
    """Bytes are sent, numbers are seconds to wait."""

    async def script(path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            if isinstance(piece, float):
                await asyncio.sleep(piece)
            else:
                writer.write(piece)
                await writer.drain()

    return script


def timed(script: Script, timeout: float = 5.0) -> Timing:
    async def run() -> Timing:
        async with server(script) as (target, _):
            return await measure(target, {"prompt": "a"}, CLOCK, timeout)

    return asyncio.run(run())


def test_tokens_are_timed_by_the_usage_of_each_chunk() -> None:
    stream = event("ab", used(1)) + event("", used(1)) + event("c", used(3))
    timing = timed(
        play(head(), 0.1, chunk(stream[:50]), chunk(stream[50:]), 0.1, chunk(event("d", used(4)), DONE), END)
    )
    assert [count for _, count in timing.arrivals] == [1, 2, 1]
    assert (timing.n_prompt, timing.n_cached, timing.n_output) == (7, 4, 4)
    assert timing.to_first_token >= 0.1
    assert timing.end - timing.submitted >= 0.2
    assert max(timing.gaps()) >= 0.1


def test_without_it_each_chunk_of_text_is_a_token_and_the_end_says_how_many() -> None:
    stream = (event("a"), event(""), event("b"), event(None, used(4)), DONE)
    timing = timed(play(head(), chunk(*stream), END))
    assert [count for _, count in timing.arrivals] == [1, 3]
    assert timing.n_prompt == 7


@pytest.mark.parametrize(
    ("script", "kind", "said"),
    [
        (play(head(), chunk(event("a", used(1))), END), "cut short", "DONE"),
        (play(head(), chunk(event("a", used(1)))), "cut short", "hung up"),
        (
            play(head(), chunk(b'data: {"error": {"code": "dead", "message": "it died"}}\n\n'), END),
            "error event dead",
            "it",
        ),
        (play(head(), chunk(b"data: {nonsense\n\n"), END), "not JSON", "nonsense"),
        (play(head(), chunk(DONE), END), "no tokens", "no tokens"),
        (play(b"gibberish\r\n\r\n"), "broken connection", "127.0.0.1"),
        (play(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 4\r\n\r\noops"), "HTTP 502", "oops"),
    ],
)
def test_failures_have_their_kinds(script: Script, kind: str, said: str) -> None:
    with pytest.raises(HttpFailure) as caught:
        timed(script)
    assert caught.value.kind == kind
    assert said in str(caught.value)


def test_a_refusal_is_counted_by_status_and_code() -> None:
    body = b'{"error": {"code": "queue_full", "message": "try later"}}'
    answer = b"HTTP/1.1 429 Too Many\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    with pytest.raises(HttpFailure, match="try later") as caught:
        timed(play(answer[:60], 0.02, answer[60:]))
    assert caught.value.kind == "HTTP 429 queue_full"


def test_a_slow_answer_times_out_and_a_closed_port_is_no_connection() -> None:
    with pytest.raises(HttpFailure) as caught:
        timed(play(head(), chunk(event("a", used(1))), 30.0), timeout=0.2)
    assert caught.value.kind == "timeout"
    with pytest.raises(HttpFailure) as caught:
        asyncio.run(measure(Target.of("http://127.0.0.1:1"), {}, CLOCK, 5.0))
    assert caught.value.kind == "no connection"


def test_the_request_names_path_key_and_body() -> None:
    async def run() -> None:
        seen = []

        async def script(path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
            seen.append((path, body))
            await play(head(), chunk(event("ü", used(1)), DONE), END)(path, body, writer)

        async with server(script) as (target, heads):
            got = [one async for one in events(target, "/v1/completions", {"prompt": "ü"})]
            assert got[0]["choices"][0]["text"] == "ü"
            assert seen == [("/v1/completions", {"prompt": "ü"})]
            assert "Authorization: Bearer secret" in heads[0]

    asyncio.run(run())


def test_a_document() -> None:
    async def run(script: Script) -> Any:
        async with server(script) as (target, _):
            return await get_json(target, "/server_info")

    whole = head() + chunk(b'{"a"') + chunk(b": 1}") + END
    assert asyncio.run(run(play(whole))) == {"a": 1}
    with pytest.raises(HttpFailure, match="no such"):
        asyncio.run(run(play(b"HTTP/1.1 404 Not\r\ncontent-length: 7\r\n\r\nno such")))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://h:8000", "http://h:8000"),
        ("http://h:8000/v1/", "http://h:8000"),
        ("https://h/api/v1", "https://h:443/api"),
        ("http://[::1]:9", "http://[::1]:9"),
        ("h:8000", None),
        ("ftp://h", None),
        ("http://h:port", None),
        ("http://h/?a=1", None),
    ],
)
def test_addresses(url: str, shown: str | None) -> None:
    if shown is None:
        with pytest.raises(ConfigError, match="no address"):
            Target.of(url)
    else:
        assert Target.of(url).url == shown


def load(arrivals: Arrivals, n: int, seconds: float) -> tuple[Outcome, list[float]]:
    """What became of ``n`` requests of ``seconds`` each, every third of which fails, and when they were sent."""
    sent: list[float] = []

    async def send(body: dict[str, Any]) -> Timing:
        sent.append(CLOCK.now())
        await asyncio.sleep(seconds)
        if body["n"] % 3 == 2:
            raise HttpFailure("HTTP 429", f"request {body['n']}")
        return Timing(sent[-1], 1, arrivals=[(CLOCK.now(), 1)])

    done: list[int] = []
    run = run_http_load([{"n": n} for n in range(n)], arrivals, send, lambda outcome: done.append(1))
    outcome = asyncio.run(run)
    assert len(done) == n
    return outcome, sent


@pytest.mark.parametrize("concurrency", [1, 3])
def test_so_many_at_a_time(concurrency: int) -> None:
    outcome, _ = load(Arrivals(concurrency), 9, 0.01)
    assert outcome.most_at_once == concurrency
    assert len(outcome.timings) == 6
    assert outcome.failures == {"HTTP 429": 3}
    assert outcome.examples == {"HTTP 429": "request 2"}


def test_a_rate_does_not_wait_for_answers_unless_there_is_a_limit() -> None:
    outcome, sent = load(Arrivals(None, rate=500.0), 20, 0.3)
    assert outcome.most_at_once == 20
    assert sent[-1] - sent[0] < 0.3
    assert load(Arrivals(2, rate=500.0), 6, 0.02)[0].most_at_once == 2


def test_random_times_have_their_mean_and_repeat_with_the_seed() -> None:
    def first(seed: int) -> list[float]:
        return [gap for gap, _ in zip(Arrivals(None, 4.0, seed).gaps(), range(4000), strict=False)]

    assert first(1) == first(1) != first(2)
    mean = sum(first(1)) / 4000
    assert mean == pytest.approx(0.25, rel=0.06)
    # Exponential: the deviation is the mean.
    deviation = (sum((gap - mean) ** 2 for gap in first(1)) / 4000) ** 0.5
    assert deviation == pytest.approx(0.25, rel=0.1)
