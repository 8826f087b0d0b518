"""``headrace bench serve``: on a server of its own, and on one that runs."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.bench.load import Timing
from headrace.bench.report import summarise
from headrace.cli import console
from headrace.cli.bench_serve import Plan, _lengths

Command = Callable[..., Any]
SIZES = ("--requests", 5, "--prompt-len", 12, "--output-len", 6)
ENGINE = ("--set", "load_format=dummy", "--threads", "1", "--kv-tokens", "2048")


@pytest.fixture(scope="module")
def address(tiny_folder: Path) -> Iterator[str]:
    """Of a server with a key, which takes two requests at once and lets one wait."""
    limits = ("--max-batch-size", "2", "--set", "scheduler_config.max_queue_size=1", "--api-key", "k")
    command = ["serve", str(tiny_folder), "--port", "0", *ENGINE, *limits]
    process = subprocess.Popen(
        [sys.executable, "-m", "headrace.cli.entry", *command], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        found = None
        for line in process.stderr:
            found = re.search(r"served at (http\S+)", line)
            if found:
                break
        assert found
        yield found[1]
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_a_server_of_its_own(command: Command, tiny_folder: Path) -> None:
    done = command("bench", "serve", tiny_folder, *SIZES, "--concurrency", 2, *ENGINE, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    report = found["report"]
    assert (report["requests"], report["concurrency"]) == (5, 2)
    assert (report["prompt_tokens"], report["output_tokens"]) == (60, 30)
    assert 0 < report["to_first_token"]["p50"] <= report["whole"]["p50"] <= report["seconds"]
    assert found["failures"] == {}
    assert found["plan"]["concurrency"] == 2
    assert "served at" in done.stderr


def test_a_running_server_at_a_rate_with_failures_by_kind(command: Command, address: str) -> None:
    sizes = ("--requests", 24, "--prompt-len", 12, "--output-len", 400)
    options = ("--url", address, "--api-key", "k", "--request-rate", 400)
    done = command("bench", "serve", *options, *sizes, "--json")
    found = json.loads(done.stdout)
    assert found["failures"].keys() == {"HTTP 429 queue_full"}
    assert found["report"]["requests"] + found["failures"]["HTTP 429 queue_full"] == 24
    assert found["report"]["output_tokens"] == 400 * found["report"]["requests"]
    shown = command("bench", "serve", *options, *sizes)
    assert "x HTTP 429 queue_full" in shown.stdout
    assert "first token" in shown.stdout


def test_texts_in_openais_own_fields(command: Command, address: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("one prompt\nanother\n")
    options = ("--url", f"{address}/v1", "--api-key", "k", "--prompt-file", file, "--plain", "--concurrency", 1)
    done = command("bench", "serve", *options, *SIZES, "--json")
    report = json.loads(done.stdout)["report"]
    assert report["prompt_tokens"] == 3 * len("one prompt") + 2 * len("another")


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (("--url", "ftp://h"), 2, "no address"),
        (("--url", "http://127.0.0.1:1"), 1, "no connection"),
        (("--url", "http://127.0.0.1:1", "--threads", "1"), 2, "num_threads"),
        (("--set", "max_batchsize=1"), 2, "max_batch_size"),
        (("nowhere/at-all", "--set", "load_format=dummy"), 1, "ended before it could be reached"),
    ],
)
def test_what_cannot_be_measured(command: Command, options: tuple[str, ...], status: int, said: str) -> None:
    done = command("bench", "serve", *options)
    assert done.exit_code == status
    assert said in done.stderr
    assert done.stdout == ""


def test_a_wrong_key_is_said(command: Command, address: str) -> None:
    done = command("bench", "serve", "--url", address, "--api-key", "wrong")
    assert done.exit_code == 1
    assert "HTTP 401 invalid_api_key" in done.stderr


def test_what_has_no_number_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    report = summarise([Timing(0.0, 1, arrivals=[(1.0, 1)])], 1)
    console.print_json(dataclasses.asdict(report))
    shown = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert shown["between_tokens"] == {"p50": None, "p90": None, "p99": None}
    assert shown["to_first_token"]["p50"] == 1.0


def test_lengths_are_spread_evenly_and_repeat() -> None:
    plan = Plan(2000, 8, 100, 0.3, None, 0, plain=False)
    lengths = _lengths(plan)
    assert lengths == _lengths(plan)
    assert (min(lengths), max(lengths)) == (70, 130)
    assert sum(lengths) / 2000 == pytest.approx(100, abs=1.5)
