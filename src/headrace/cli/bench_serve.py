"""``headrace bench serve``: load on a server, and what its clients see of it."""

from __future__ import annotations

import asyncio
import dataclasses
import queue
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.progress import Progress, TextColumn

from headrace.bench.http_client import HttpFailure, Target, get_json
from headrace.bench.http_load import Arrivals, Outcome, measure, run_http_load
from headrace.bench.load import random_prompts
from headrace.bench.report import Report, summarise
from headrace.cli import console
from headrace.cli.bench_parts import Json, OutputLen, PromptFile, PromptLen, Seed, report_rows, report_table
from headrace.cli.options import DEFAULT_MODEL, with_engine_options
from headrace.cli.prompts import read_prompts
from headrace.core.clock import SystemClock
from headrace.core.errors import ConfigError, EngineError

DEFAULT_CONCURRENCY = 8
_END_LIMIT = 30.0
"""Seconds that a server of our own gets to end."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What is sent. ``spread``: lengths are drawn evenly from this share below to this share above."""

    requests: int
    prompt_len: int
    output_len: int
    spread: float
    prompt_file: Path | None
    seed: int
    plain: bool


@with_engine_options
def bench_serve(
    model: Annotated[
        str | None, typer.Argument(help=f"To start a server on ({DEFAULT_MODEL}); with --url its name there.")
    ] = None,
    *,
    url: Annotated[str | None, typer.Option(help="A running server; else one is started, and ended.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="HEADRACE_API_KEY", help="Key of the running server.")] = None,
    requests: Annotated[int, typer.Option(min=1, help="Requests in all.")] = 32,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help=f"Requests at a time, at most ({DEFAULT_CONCURRENCY}; no limit at a rate)."),
    ] = None,
    request_rate: Annotated[
        float | None, typer.Option(min=0.001, metavar="R", help="Requests a second, at random times (Poisson).")
    ] = None,
    prompt_len: PromptLen = 128,
    output_len: OutputLen = 64,
    spread: Annotated[
        float, typer.Option(min=0.0, max=1.0, metavar="S", help="Lengths differ by up to this share, both ways.")
    ] = 0.0,
    prompt_file: PromptFile = None,
    vocab_size: Annotated[
        int | None, typer.Option(min=2, help="Random prompts are drawn from this many ids; else the server is asked.")
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Send OpenAI's own fields only; answers may then end early.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=0.1, metavar="S", help="Seconds a request may take.")] = 600.0,
    seed: Seed = 0,
    json: Json = False,
    engine: dict[str, Any],
) -> None:
    """Load on a server over HTTP: time to the first token, between tokens, to the end; failures by kind."""
    if url is not None and engine:
        raise ConfigError(f"--url goes without engine options ({', '.join(engine)}): that server runs already")
    if request_rate is None and concurrency is None:
        concurrency = DEFAULT_CONCURRENCY
    plan = Plan(requests, prompt_len, output_len, spread, prompt_file, seed, plain)
    with _server(url, model or DEFAULT_MODEL, engine) as address:
        target = Target.of(address, api_key if url is not None else None)
        arrivals = Arrivals(concurrency, request_rate, seed)
        name, outcome = asyncio.run(
            _run(target, model if url is not None else None, plan, arrivals, vocab_size, timeout)
        )
    report = summarise(outcome.timings, outcome.most_at_once) if outcome.timings else None
    if json:
        console.print_json(_document(target, name, plan, arrivals, report, outcome))
    else:
        _print(report, outcome)
    if report is None:
        raise EngineError("no request was answered")


async def _run(
    target: Target, name: str | None, plan: Plan, arrivals: Arrivals, vocab_size: int | None, timeout: float
) -> tuple[str, Outcome]:
    """(the model's name, what became of the requests)."""
    clock = SystemClock()
    try:
        if name is None:
            name = (await get_json(target, "/v1/models"))["data"][0]["id"]
        prompts = await _prompts(target, plan, vocab_size)
        bodies = [_body(name, prompt, length, plan) for prompt, length in zip(prompts, _lengths(plan), strict=True)]
        # One request first, so that nobody pays for what the first step sets up.
        await measure(target, bodies[0] | {"max_tokens": 2, "prompt": bodies[0]["prompt"][:8]}, clock, timeout)
    except HttpFailure as failure:
        raise EngineError(f"the server at {target.url} cannot be measured: {failure.kind}: {failure}") from None
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, console=console.err()) as bar:
        task, begin = bar.add_task("requests", total=len(bodies), rate=""), clock.now()

        def advance(outcome: Outcome) -> None:
            tokens = sum(one.n_output for one in outcome.timings)
            bar.update(task, advance=1, rate=f"{tokens / (clock.now() - begin):.1f} tokens/s")

        return name, await run_http_load(bodies, arrivals, lambda body: measure(target, body, clock, timeout), advance)


def _body(name: str, prompt: str | list[int], length: int, plan: Plan) -> dict[str, Any]:
    usage = {"include_usage": True} | ({} if plan.plain else {"continuous_usage_stats": True})
    body = {"model": name, "prompt": prompt, "max_tokens": length, "stream": True, "stream_options": usage}
    return body | {"temperature": 0.0} | ({} if plan.plain else {"ignore_eos": True})


def _lengths(plan: Plan) -> list[int]:
    draw = random.Random(plan.seed + 1)
    return [_about(draw, plan.output_len, plan.spread, least=2) for _ in range(plan.requests)]


async def _prompts(target: Target, plan: Plan, vocab_size: int | None) -> list[str] | list[list[int]]:
    if plan.prompt_file is not None:
        texts = [prompt.text for prompt in read_prompts([], plan.prompt_file)]
        return [texts[index % len(texts)] for index in range(plan.requests)]
    if vocab_size is None:
        vocab_size = await _vocab_size(target)
    draw = random.Random(plan.seed + 2)
    longest = random_prompts(plan.requests, int(plan.prompt_len * (1 + plan.spread)), vocab_size, plan.seed)
    return [ids[: _about(draw, plan.prompt_len, plan.spread, least=1)] for ids in longest]


def _about(draw: random.Random, length: int, spread: float, least: int) -> int:
    return max(least, draw.randint(int(length * (1 - spread)), int(length * (1 + spread))))


async def _vocab_size(target: Target) -> int:
    try:
        return int((await get_json(target, "/server_info"))["config"]["vocab_size"])
    except (HttpFailure, KeyError, TypeError, ValueError):
        raise ConfigError(
            f"the server at {target.url} does not say how large its vocabulary is: give --vocab-size or --prompt-file"
        ) from None


@contextmanager
def _server(url: str | None, model: str, engine: Mapping[str, Any]) -> Iterator[str]:
    """The address of a server: the one that runs, or one that runs as long as the ``with`` block."""
    if url is not None:
        yield url
        return
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "settings.yaml"
        settings.write_text(yaml.safe_dump(dict(engine)), encoding="utf-8")
        command = [sys.executable, "-m", "headrace.cli.entry", "serve", model, "--port", "0", "--config", str(settings)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        found: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        reader = threading.Thread(target=_listen, args=(process, found), name="server-log")
        reader.start()
        try:
            address = found.get()
            if address is None:
                raise EngineError(f"the server ended before it could be reached, with status {process.wait()}")
            yield address
        finally:
            _end(process)
            reader.join()


def _listen(process: subprocess.Popen[str], found: queue.SimpleQueue[str | None]) -> None:
    """Passes on what the server says, to its end; ``found`` gets its address, or None when it has ended."""
    assert process.stderr is not None
    for line in process.stderr:
        console.note(line.rstrip())
        address = re.search(r"served at (http://\S+)", line)
        if address:
            found.put(address[1])
    found.put(None)


def _end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_END_LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _document(
    target: Target, name: str, plan: Plan, arrivals: Arrivals, report: Report | None, outcome: Outcome
) -> dict[str, Any]:
    return {
        "url": target.url,
        "model": name,
        "plan": dataclasses.asdict(plan) | {"concurrency": arrivals.concurrency, "request_rate": arrivals.rate},
        "report": None if report is None else dataclasses.asdict(report),
        "failures": dict(outcome.failures),
        "examples": outcome.examples,
    }


def _print(report: Report | None, outcome: Outcome) -> None:
    rows = [] if report is None else report_rows(report)
    rows += [("failed", f"{count} x {kind}", outcome.examples[kind]) for kind, count in outcome.failures.most_common()]
    console.out().print(report_table(rows))
