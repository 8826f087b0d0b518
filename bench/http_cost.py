"""What HTTP costs: streams of a server whose engine makes up its tokens, and HTTP's share beside a real model.

    python bench/http_cost.py sim   [--clients 64] [--tokens 2000] [--rounds 5]
    python bench/http_cost.py share [--clients 32] [--tokens 64]

``sim``: the engine's process runs the sim executor with the built-in model's vocabulary, so the server detokenises real
tokens. One server process streams to clients in a process of their own, over raw sockets. The promise is 60,000 tokens
a second; CPU seconds a token are the server process's alone, kernel included. When the server falls behind, the tokens
of several steps go out as one event: events a token says how often that happened.

``share``: ``headrace serve`` over the built-in model, and the part of all CPU seconds that its server process took
between the first event and the last. The promise is less than 5 %.
"""

from __future__ import annotations

import argparse
import json
import re
import select
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import psutil

LIMIT_TOKENS = 60_000
LIMIT_SHARE = 0.05
MODEL = "smollm2"
_READ_EVERY = 0.002
"""Seconds between two looks at all sockets: reading must not cost what writing does."""


@dataclass(slots=True)
class Stream:
    """One client's answer as it arrives."""

    socket: socket.socket
    n_bytes: int = 0
    n_events: int = 0
    tail: bytes = b""

    def read(self) -> bool:
        """Takes in what there is; True at the end of the answer."""
        data = self.socket.recv(1 << 20)
        self.n_bytes += len(data)
        self.n_events += data.count(b"data: ")
        self.tail = (self.tail + data)[-400:]
        if not data:
            raise ConnectionError(f"the server hung up: {self.tail!r}")
        return self.tail.endswith(b"0\r\n\r\n")

    def n_tokens(self) -> int:
        """Out of the usage at the end of a whole answer."""
        if b"[DONE]" not in self.tail:
            raise ValueError(f"a stream ended early: {self.tail!r}")
        return int(re.search(rb'"completion_tokens":(\d+)', self.tail)[1])


def open_streams(url: str, model: str, clients: int, tokens: int) -> list[Stream]:
    """Sends a request on each of ``clients`` connections, different from one another."""
    address = urlsplit(url)
    streams = []
    for which in range(clients):
        body = {
            "model": model,
            "prompt": [(which * 7 + place) % 500 + 100 for place in range(16)],
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        data = json.dumps(body).encode()
        connection = socket.create_connection((address.hostname, address.port))
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(data), data)
        )
        streams.append(Stream(connection))
    return streams


def drain(url: str, model: str, clients: int, tokens: int) -> None:
    """The clients' process: prints what it saw as JSON, and a line of its own when all streams have begun."""
    streams = open_streams(url, model, clients, tokens)
    poll = select.epoll()
    by_number = {stream.socket.fileno(): stream for stream in streams}
    for number in by_number:
        poll.register(number, select.EPOLLIN)
    begun: set[int] = set()
    begin = time.perf_counter()
    told = False
    left = len(streams)
    while left:
        for number, _ in poll.poll():
            if by_number[number].read():
                poll.unregister(number)
                left -= 1
            begun.add(number)
        if not told and len(begun) == len(streams):
            told = True
            print("begun", flush=True)
        time.sleep(_READ_EVERY)
    seconds = time.perf_counter() - begin
    for stream in streams:
        stream.socket.close()
    made = sum(stream.n_tokens() for stream in streams)
    events = sum(stream.n_events for stream in streams)
    print(json.dumps({"tokens": made, "events": events, "seconds": seconds}), flush=True)


def serve_sim(clients: int, tokens: int, step_ms: float) -> None:
    """The server's process: the real server, over an engine process that runs the sim executor."""
    from headrace.core.clock import SystemClock
    from headrace.core.config import LlmArgs
    from headrace.core.phases import Phases
    from headrace.engine.engine import Engine
    from headrace.engine.find import find_model, find_tokenizer
    from headrace.engine.remote import RemoteBackend
    from headrace.engine.spawn import spawn
    from headrace.serve.engine import FrontedEngine
    from headrace.serve.options import ServeOptions
    from headrace.serve.server import Server
    from headrace.serve.serving import Serving
    from headrace.sim.engine import COMMAND

    args, clock = LlmArgs(model=MODEL), SystemClock()
    phases = Phases(clock)
    tokenizer = find_tokenizer(args, find_model(args, phases), phases)
    length = tokens + 64
    settings = {
        "max_batch_size": clients,
        "max_seq_len": length,
        "vocab_size": tokenizer.vocab_size,
        "cache_tokens": clients * (length + 64),
        "window": 1,
        "step_seconds": step_ms / 1e3,
    }
    backend = RemoteBackend.build(spawn(COMMAND), settings, clock, 30.0)
    try:
        engine = Engine(backend, backend.report(), tokenizer, clock, backend.connect)
        options = ServeOptions(model_name=MODEL, port=0)
        server = Server(Serving(FrontedEngine(engine, args, clock, 30.0), options))
        server.run(lambda: print(server.url, file=sys.stderr, flush=True))
    finally:
        backend.shutdown()


@contextmanager
def running(command: list[str]) -> Iterator[tuple[psutil.Process, psutil.Process, str]]:
    """A server: its process, its engine's, and its address. Ended with SIGTERM."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            if found := re.search(r"http://\S+", line):
                break
            print(line, end="", file=sys.stderr)
        else:
            raise SystemExit("the server did not start")
        server = psutil.Process(process.pid)
        (engine,) = server.children()
        yield server, engine, found.group()
    finally:
        process.terminate()
        process.wait(30)


def cpu(process: psutil.Process) -> float:
    """CPU seconds so far, user and kernel."""
    times = process.cpu_times()
    return times.user + times.system


def measured(server: psutil.Process, engine: psutil.Process, url: str, clients: int, tokens: int) -> dict[str, float]:
    """One round: what the clients saw, and the CPU seconds from the moment all streams had begun."""
    command = [sys.executable, __file__, "drain", url, "--clients", str(clients), "--tokens", str(tokens)]
    start = cpu(server), cpu(engine)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        client.stdout.readline()
        begun = cpu(server), cpu(engine)
        saw = json.loads(client.stdout.readline())
    now = cpu(server), cpu(engine)
    return saw | {
        "server": now[0] - start[0],
        "engine": now[1] - start[1],
        "server_begun": now[0] - begun[0],
        "engine_begun": now[1] - begun[1],
    }


def sim(clients: int, tokens: int, rounds: int, step_ms: float) -> bool:
    command = [sys.executable, __file__, "serve-sim", "--clients", str(clients), "--tokens", str(tokens)]
    with running([*command, "--step-ms", str(step_ms)]) as (server, engine, url):
        measured(server, engine, url, clients, 50)
        found = [measured(server, engine, url, clients, tokens) for _ in range(rounds)]
    speeds = sorted(one["tokens"] / one["seconds"] for one in found)
    tokens_made = [one["tokens"] for one in found]
    per_token = statistics.median(one["server"] / n * 1e6 for one, n in zip(found, tokens_made, strict=True))
    of_engine = statistics.median(one["engine"] / n * 1e6 for one, n in zip(found, tokens_made, strict=True))
    events = statistics.median(one["events"] / n for one, n in zip(found, tokens_made, strict=True))
    median = statistics.median(speeds)
    print(f"{clients} streams of {tokens} tokens, {rounds} rounds, real detokenisation, sim executor")
    print(f"tokens/s                 p50 {median:,.0f}   all: {', '.join(f'{one:,.0f}' for one in speeds)}")
    print(f"server process           {per_token:.1f} us of CPU a token, {events:.2f} events a token")
    print(f"engine process (sim)     {of_engine:.1f} us of CPU a token")
    print(f"limit                    {LIMIT_TOKENS:,} tokens/s: {'kept' if median >= LIMIT_TOKENS else 'MISSED'}")
    return median >= LIMIT_TOKENS


def share(clients: int, tokens: int) -> bool:
    command = [sys.executable, "-m", "headrace.cli.entry", "serve", MODEL, "--port", "0"]
    with running(command) as (server, engine, url):
        measured(server, engine, url, clients, 2)
        one = measured(server, engine, url, clients, tokens)
    part = one["server_begun"] / (one["server_begun"] + one["engine_begun"])
    print(f"{clients} streams of {tokens} tokens of {MODEL}: {one['tokens'] / one['seconds']:.1f} tokens/s")
    print(f"CPU seconds: server {one['server_begun']:.2f}, engine {one['engine_begun']:.2f}")
    print(f"HTTP's share             {part:.1%}   limit {LIMIT_SHARE:.0%}")
    return part < LIMIT_SHARE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("sim", "share", "serve-sim", "drain"))
    parser.add_argument("url", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--clients", type=int)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--step-ms", type=float, default=0.0, help="sim: slow the engine down to steps of this length")
    args = parser.parse_args()
    usual = (32, 64) if args.what == "share" else (64, 2000)
    clients, tokens = args.clients or usual[0], args.tokens or usual[1]
    if args.what == "drain":
        drain(args.url, MODEL, clients, tokens)
    elif args.what == "serve-sim":
        serve_sim(clients, tokens, args.step_ms)
    elif args.what == "sim":
        sys.exit(not sim(clients, tokens, args.rounds, args.step_ms))
    else:
        sys.exit(not share(clients, tokens))


if __name__ == "__main__":
    main()
