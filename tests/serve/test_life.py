"""Clients that hang up, signals, and an engine that dies: nothing is left behind, and nobody is left waiting."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from serving_rig import NAME, Running, command, crowd, slowed, wait_for

from headrace.core.errors import EngineDeadError

LONG = {"prompt": "a", "max_tokens": 1500, "ignore_eos": True}


# Hanging up.


def _hang_up(running: Running, stream: bool) -> None:
    """Sends a long request and leaves in the middle of the answer."""
    url = f"{running.url}/v1/completions"
    if not stream:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, json=LONG, timeout=0.3)
        return
    with httpx.stream("POST", url, json=LONG | {"stream": True}, timeout=30) as answer:
        lines = answer.iter_lines()
        for _ in range(12):
            next(lines)
        assert running.serving.jobs


@pytest.mark.parametrize("stream", [False, True])
def test_hanging_up_cancels_within_a_step_or_two(tiny: Running, stream: bool) -> None:
    with slowed(tiny.llm, 0.02):
        worker = tiny.llm._engine.backend.executor._worker
        slow, steps = worker.execute, []
        worker.execute = lambda *of_step: steps.append(of_step[0]) or slow(*of_step)
        _hang_up(tiny, stream)
        before = len(steps)
        assert before > 2
        wait_for(lambda: not tiny.serving.jobs)
        tiny.idle()
        # One step is being computed when the client goes, one is planned, one may start before the cancel is read.
        assert len(steps) - before <= 4
        worker.execute = slow


def test_hanging_up_while_waiting_in_the_queue(serve: Any) -> None:
    with serve(max_batch_size=1) as running, slowed(running.llm, 0.01):
        first = running.llm.generate_async("b")
        running.llm.generate_async("c").abort()
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{running.url}/v1/completions", json=LONG | {"stream": True}, timeout=0.1)
        first.result(20)
        running.idle()


def test_sixteen_clients_of_which_a_third_hang_up(tiny: Running) -> None:
    chance = random.Random(5)
    gone = 0
    with slowed(tiny.llm, 0.004):
        for _ in range(3):
            whole, hung_up = asyncio.run(crowd(tiny, NAME, 16, (40, 40), 0.4, chance))
            assert whole >= 10
            gone += hung_up
            tiny.idle()
    assert gone >= 6
    assert tiny.post("/v1/completions", {"prompt": "a", "max_tokens": 2}).status_code == 200
    assert b"headrace_client_gone_total" in tiny.get("/prometheus/metrics").content


# Going down.


def test_draining_lets_requests_finish_and_takes_no_more(serve: Any) -> None:
    with serve() as running, slowed(running.llm, 0.01):
        body = LONG | {"max_tokens": 60, "stream": True}
        with httpx.stream("POST", f"{running.url}/v1/completions", json=body, timeout=30) as answer:
            lines = answer.iter_lines()
            next(lines)
            running.server.stop()
            wait_for(lambda: running.serving.draining)
            late = running.post("/v1/completions", LONG)
            assert late.status_code == 503
            assert late.json()["error"]["code"] == "shutting_down"
            assert running.get("/health").status_code == 503
            assert list(lines)[-2] == "data: [DONE]"
        running.thread.join(10)
        assert running.status == [0]


@pytest.mark.parametrize(("stream", "limit"), [(False, 0.3), (True, 0.3), (True, 60.0)])
def test_what_does_not_finish_in_time_is_cancelled(serve: Any, stream: bool, limit: float) -> None:
    with serve({"drain_limit": limit}) as running, slowed(running.llm, 0.02):
        answers: list[httpx.Response] = []
        body = LONG | {"stream": stream}
        client = threading.Thread(target=lambda: answers.append(running.post("/v1/completions", body)))
        client.start()
        wait_for(lambda: running.serving.jobs)
        time.sleep(0.1)
        running.server.stop()
        if limit > 1.0:
            wait_for(lambda: running.serving.draining)
            running.server.stop()
        client.join(10)
        running.thread.join(10)
        assert running.status == [0]
        if stream:
            *_, last, end = answers[0].text.split("\n\n")
            assert end == ""
            error = json.loads(last.removeprefix("data: "))["error"]
        else:
            assert answers[0].status_code == 503
            error = answers[0].json()["error"]
        assert error["code"] == "shutting_down"
        running.idle()


def test_a_broken_worker_fails_requests_and_ends_the_server(serve: Any) -> None:
    with serve() as running:

        def broken(*_: Any) -> Any:
            time.sleep(0.2)
            raise MemoryError("no more")

        running.llm._engine.backend.executor._worker.execute = broken
        with pytest.raises(openai.InternalServerError, match="no more") as caught:
            running.client().completions.create(model=NAME, prompt="a")
        begin = time.monotonic()
        assert caught.value.status_code == 503
        health = running.get("/health")
        assert health.status_code == 503
        assert "no more" in health.json()["error"]["message"]
        running.thread.join(5)
        assert running.status == [1]
        assert time.monotonic() - begin < 1.0


def test_all_prompts_of_a_request_fail_as_one(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    with serve() as running, slowed(running.llm, 0.01):
        running.llm._engine.backend.executor._worker.execute = _raise
        answer = running.post("/v1/completions", LONG | {"prompt": ["a", "b", "c"]})
        assert answer.status_code == 503
        assert "no more" in answer.json()["error"]["message"]
        running.thread.join(5)
        assert running.status == [1]
    gc.collect()
    assert "never retrieved" not in caplog.text


def test_a_stream_ends_with_the_error_when_the_worker_breaks(serve: Any) -> None:
    with serve() as running, slowed(running.llm, 0.01):
        worker = running.llm._engine.backend.executor._worker
        chunks = running.client().completions.create(
            model=NAME, prompt="a", max_tokens=1000, stream=True, extra_body={"ignore_eos": True}
        )
        assert next(chunks).choices
        worker.execute = _raise
        with pytest.raises(openai.APIError, match="no more"):
            list(chunks)
        running.thread.join(5)
        assert running.status == [1]


def _raise(*_: Any) -> Any:
    raise MemoryError("no more")


def test_a_stuck_loop_ends_the_server_and_an_idle_one_does_not(serve: Any) -> None:
    with serve({"heartbeat_limit": 0.3}) as running:
        time.sleep(0.5)
        assert running.get("/health").status_code == 200
        with slowed(running.llm, 1.0):
            request = running.llm.generate_async("a")
            assert running.get("/health").status_code == 200
            wait_for(lambda: running.get("/health").status_code == 503, 1.0)
            assert "not turned" in running.get("/health").json()["error"]["message"]
            with pytest.raises(EngineDeadError, match="not turned"):
                request.result(1)
            running.thread.join(1.0)
            assert running.status == [1]


# The command.


def test_sigterm_drains_and_exits_with_zero(folder: Path, tmp_path: Path) -> None:
    settings = tmp_path / "extra.yaml"
    settings.write_text("max_batch_size: 3\nkv_cache_config: {max_tokens: 4096}\nmax_seq_len: 512\n")
    with command(folder, "--config", str(settings), "--set", "max_batch_size=2", "--api-key", "k") as (process, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0)
        config = httpx.get(f"{url}/server_info", headers={"Authorization": "Bearer k"}).json()["config"]
        assert (config["max_batch_size"], config["max_seq_len"]) == (2, 512)
        assert config["scheduler_config"]["max_queue_size"] == 1024
        texts = []
        for chunk in client.completions.create(
            model=NAME, prompt="a", max_tokens=300, stream=True, extra_body={"ignore_eos": True}
        ):
            if not texts:
                process.send_signal(signal.SIGTERM)
            texts.append(chunk.choices[0].finish_reason)
        assert texts[-1] == "length"
        assert process.wait(10) == 0


def test_an_address_in_use_is_an_error_of_the_command(folder: Path) -> None:
    with command(folder) as (_, url):
        port = url.rsplit(":", 1)[1]
        words = ["serve", str(folder), "--port", port, "--threads", "1", "--set", "load_format=dummy"]
        done = subprocess.run([sys.executable, "-m", "headrace.cli.entry", *words], capture_output=True, text=True)
        assert done.returncode == 2
        assert port in done.stderr
