"""Bytes that are almost HTTP, over real connections: each ends with an answer or a closed door, and a stream that runs
beside them does not notice."""

from __future__ import annotations

import json
import random
import socket
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing

import httpx
import pytest
from mutations import Raw, mutated
from serving_rig import Running

SEED = 21
NEIGHBOUR = {"prompt": "a", "max_tokens": 300, "temperature": 0, "ignore_eos": True, "stream": True}


def _whole(chance: random.Random, raw: Raw) -> bytes:
    length = b"content-length: %d\r\n" % len(raw.body)
    return _head(raw) + length + b"\r\n" + raw.body


def _head(raw: Raw) -> bytes:
    query = b"?" + raw.query if raw.query else b""
    lines = [b"%s %s%s HTTP/1.1" % (raw.method.encode(), raw.path.encode(), query), b"connection: close"]
    lines += [name + b": " + value for name, value in raw.headers]
    if not any(name == b"host" for name, _ in raw.headers):
        lines.append(b"host: a")
    return b"\r\n".join(lines) + b"\r\n"


def _torn(chance: random.Random, raw: Raw) -> bytes:
    data = _whole(chance, raw)
    return data[: chance.randrange(len(data))]


def _flipped(chance: random.Random, raw: Raw) -> bytes:
    data = bytearray(_whole(chance, raw))
    for _ in range(chance.choice((1, 1, 5))):
        data[chance.randrange(min(len(data), 300))] = chance.randrange(256)
    return bytes(data)


def _wrong_length(chance: random.Random, raw: Raw) -> bytes:
    wrong = chance.choice((b"0", b"1", b"-1", b"9" * 20, b"0x10", b"+5", b"5\r\ncontent-length: 6", b"%d" % 2**63))
    return _head(raw) + b"content-length: " + wrong + b"\r\n\r\n" + raw.body


def _chunks(chance: random.Random, raw: Raw) -> bytes:
    size = chance.choice((b"%x" % len(raw.body), b"0", b"-1", b"zz", b"f" * 20, b"%x;ext=\xff" % len(raw.body), b""))
    end = chance.choice((b"0\r\n\r\n", b"", b"0\r\nx: \xff\r\n\r\n", b"0\n\n"))
    return _head(raw) + b"transfer-encoding: chunked\r\n\r\n" + size + b"\r\n" + raw.body + b"\r\n" + end


def _twice(chance: random.Random, raw: Raw) -> bytes:
    """Two requests at once, where the first says that it is the last."""
    return _whole(chance, raw) * 2


def _long_head(chance: random.Random, raw: Raw) -> bytes:
    line = chance.choice((b"x" * 200_000 + b": 1", b"x: " + b"y" * 200_000, b"\r\n".join([b"x: y"] * 20_000)))
    return _head(raw) + line + b"\r\n\r\n" + raw.body


def _line_ends(chance: random.Random, raw: Raw) -> bytes:
    return _whole(chance, raw).replace(b"\r\n", chance.choice((b"\n", b"\r", b"\r\n ", b"\x00\r\n")))


def _no_http(chance: random.Random, raw: Raw) -> bytes:
    return chance.choice(
        (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
            b"GET /health\r\n\r\n",
            b"GET /health HTTP/9.9\r\n\r\n",
            b"GET http://a:b@[::1/health HTTP/1.1\r\nconnection: close\r\n\r\n",
            b"GET  /health HTTP/1.1\r\n\r\n",
            b"CONNECT a:1 HTTP/1.1\r\nconnection: close\r\n\r\n",
            b"OPTIONS * HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
            raw.body,
            bytes(chance.randrange(256) for _ in range(500)),
        )
    )


FORMS: tuple[Callable[[random.Random, Raw], bytes], ...] = (
    *(_whole, _whole, _whole, _torn, _flipped, _flipped, _wrong_length, _chunks, _chunks),
    *(_twice, _long_head, _line_ends, _no_http),
)


FRAMING = {b"content-length", b"transfer-encoding", b"expect", b"connection", b"upgrade"}


def exchange(port: int, data: bytes, *, is_whole: bool, waits: bool) -> bytes:
    """Sends and reads to the end. ``is_whole``: the server must see where the request ends; otherwise it is told that
    nothing more comes, which is hanging up. ``waits`` False: leaves without reading."""
    received = b""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=20)) as connection:
        try:
            connection.sendall(data)
            if not is_whole:
                connection.shutdown(socket.SHUT_WR)
            while waits and (piece := connection.recv(1 << 16)):
                received += piece
        except TimeoutError:
            raise
        except OSError:
            # The server has closed the door on what it could not read.
            pass
    return received


def tokens(running: Running) -> list[str]:
    with httpx.stream("POST", f"{running.url}/v1/completions", json=NEIGHBOUR, timeout=60) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line)["choices"][0]["text"] for line in lines]


@pytest.mark.parametrize(
    "times", [pytest.param(600, id="quick"), pytest.param(5_000, id="slow", marks=pytest.mark.slow)]
)
def test_bytes_that_are_almost_http(tiny: Running, times: int) -> None:
    alone, beside, done = "".join(tokens(tiny)), [], threading.Event()

    def neighbour() -> None:
        while not done.is_set():
            beside.append("".join(tokens(tiny)))

    thread = threading.Thread(target=neighbour)
    thread.start()
    try:
        seen = fuzz(tiny.server.port, times)
    finally:
        done.set()
        thread.join(60)
    assert set(beside) == {alone}
    assert seen[200] > times / 30
    assert seen[400] > times / 5
    assert seen[0] > 0
    tiny.idle()


def fuzz(port: int, times: int) -> Counter[int]:
    """Statuses; 0 for a closed door."""
    seen: Counter[int] = Counter()
    for number in range(times):
        raw, chance = mutated(SEED, number), random.Random(number)
        form = chance.choice(FORMS)
        data = form(chance, raw)
        is_whole = form in (_whole, _twice) and not any(name in FRAMING for name, _ in raw.headers)
        answer = exchange(port, data, is_whole=is_whole, waits=chance.random() < 0.9)
        answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
        status = int(answer.split(b" ", 2)[1]) if answer else 0
        assert status < 500, (number, data[:500], answer[:500])
        assert status == 0 or answer.startswith(b"HTTP/1.1 "), (number, data[:500], answer[:100])
        seen[status] += 1
    return seen
