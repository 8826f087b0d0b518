"""A tiny model behind a real server, which stops by itself."""

from __future__ import annotations

import asyncio
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
from openai.types import Completion
from openai.types.chat import ChatCompletion

from headrace import LLM, KvCacheConfig
from headrace.core.clock import SystemClock
from headrace.core.config import LlmArgs
from headrace.engine.engine import Engine
from headrace.engine.launch import launch_engine
from headrace.serve.engine import FrontedEngine
from headrace.serve.options import ServeOptions
from headrace.serve.server import Server
from headrace.serve.serving import Serving

VOCAB = 320
NAME = "tiny"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "vocab_size": VOCAB,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "dtype": "float32",
}
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@dataclass
class Running:
    """A server and what tests ask of it."""

    engine: Engine
    server: Server
    serving: Serving
    thread: threading.Thread
    status: list[int]
    n_tasks: int
    """Of the event loop, before the first request."""
    here: LLM | None = None
    """Whose engine it is, unless that has a process of its own."""

    @property
    def llm(self) -> LLM:
        assert self.here is not None, "the engine is in another process"
        return self.here

    @property
    def url(self) -> str:
        return self.server.url

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(**{"base_url": f"{self.url}/v1", "api_key": "-", "max_retries": 0, **options})

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, **({} if body is None else {"json": body}), timeout=60, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=60, **options)

    def ask(self, question: str) -> Any:
        """What the engine answers."""
        if self.here is not None:
            return self.engine.backend.call(question).result(10)

        async def there() -> Any:
            return await asyncio.wrap_future(self.engine.backend.call(question))

        return asyncio.run_coroutine_threadsafe(there(), self.server._loop).result(10)

    def idle(self) -> None:
        """Nothing runs, waits, or holds a slot, a block or a task."""
        wait_for(lambda: not self.serving.jobs and not self.engine.front.n_live and self.engine.health.is_idle, 20.0)
        self.ask("check_idle")
        if self.thread.is_alive():
            wait_for(lambda: n_tasks(self.server._loop) <= self.n_tasks)


@contextmanager
def served(folder: Path, options: dict[str, Any] | None = None, **engine: Any) -> Iterator[Running]:
    """A server over an engine in this process, which tests can get hold of."""
    with LLM(folder, **_settings(engine)) as llm, _running(llm._engine, llm.args, options, llm) as running:
        yield running


@contextmanager
def served_apart(folder: Path, options: dict[str, Any] | None = None, **engine: Any) -> Iterator[Running]:
    """A server as `headrace serve` makes it, over an engine in a process of its own."""
    args = LlmArgs.from_call(folder, _settings(engine))
    launched = launch_engine(args, heartbeat_limit=60.0)
    try:
        with _running(launched, args, options) as running:
            yield running
    finally:
        launched.shutdown()


def _settings(engine: dict[str, Any]) -> dict[str, Any]:
    return {"load_format": "dummy", "num_threads": 1, "kv_cache_config": KvCacheConfig(max_tokens=8192), **engine}


@contextmanager
def _running(
    engine: Engine, args: LlmArgs, options: dict[str, Any] | None, here: LLM | None = None
) -> Iterator[Running]:
    serve_options = ServeOptions(**{"model_name": NAME, "port": 0, "drain_limit": 5.0, **(options or {})})
    serving = Serving(FrontedEngine(engine, args, SystemClock(), serve_options.heartbeat_limit), serve_options)
    server = Server(serving)
    ready, status, counted = threading.Event(), [], []

    def note() -> None:
        counted.append(n_tasks(asyncio.get_running_loop()))
        ready.set()

    thread = threading.Thread(target=lambda: status.append(server.run(note)), name="server")
    thread.start()
    assert ready.wait(10)
    try:
        yield Running(engine, server, serving, thread, status, counted[0], here)
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive()


def n_tasks(loop: asyncio.AbstractEventLoop) -> int:
    """Tasks of a loop, but for the server's own wait for its end."""
    return sum(task.get_coro().__qualname__ != "Event.wait" for task in asyncio.all_tasks(loop))


async def crowd(
    running: Running, model: str, n_clients: int, n_tokens: tuple[int, int], patience: float, chance: random.Random
) -> tuple[int, int]:
    """Clients of both APIs, streaming and not, each asking for a number of tokens between the two: (whole answers, hung
    up). A third hang up: from a stream after up to three events, from another before ``patience`` seconds have passed.
    Every event is what the client's own types say it is."""
    client = openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="-", max_retries=0, timeout=120)

    def whole(answer: Completion | ChatCompletion, n_outputs: int, length: int) -> None:
        type(answer).model_validate(answer.to_dict())
        assert answer.usage.completion_tokens == n_outputs * length

    async def follow(answer: openai.AsyncStream[Any], n_outputs: int, leaves_after: int | None) -> bool:
        ends = count = 0
        async for chunk in answer:
            if count == leaves_after:
                await answer.close()
                return False
            count += 1
            event = chunk.to_dict()
            if isinstance(chunk, Completion):
                # The type has no word for a choice that goes on; OpenAI's own events have null there.
                for choice in event["choices"]:
                    choice["finish_reason"] = choice["finish_reason"] or "stop"
            type(chunk).model_validate(event)
            ends += sum(choice.finish_reason is not None for choice in chunk.choices)
        assert ends == n_outputs
        return True

    async def run(which: int, stream: bool, leaves: bool) -> bool:
        length, n = chance.randint(*n_tokens), 1 + which % 2
        events, seconds = chance.randrange(4), chance.uniform(0.0, patience)
        body = {"model": model, "max_tokens": length, "seed": which, "n": n, "stream": stream}
        body["extra_body"] = {"ignore_eos": True}
        if chat := which % 4 < 2:
            make, body["messages"] = client.chat.completions.create, [{"role": "user", "content": f"say {which}"}]
        else:
            make, body["prompt"] = client.completions.create, ["say", "it"]
        n_outputs = n * (1 if chat else 2)
        try:
            async with asyncio.timeout(seconds if leaves and not stream else None):
                answer = await make(**body)
        except TimeoutError:
            return False
        if stream:
            return await follow(answer, n_outputs, events if leaves else None)
        whole(answer, n_outputs, length)
        return True

    plans = [(which, chance.random() < 0.5, which % 3 == 0) for which in range(n_clients)]
    done = await asyncio.gather(*(run(*plan) for plan in plans))
    await client.close()
    return sum(done), len(done) - sum(done)


@contextmanager
def slowed(llm: LLM, seconds: float) -> Iterator[None]:
    """Every step takes at least this long, so that a test can be sure to meet a request under way."""
    worker = llm._engine.backend.executor._worker
    execute = worker.execute

    def slow(*of_step: Any) -> Any:
        time.sleep(seconds)
        return execute(*of_step)

    worker.execute = slow
    try:
        yield
    finally:
        del worker.execute


@contextmanager
def command(
    folder: Path, *options: str, launcher: Sequence[str] = ("-m", "headrace.cli.entry")
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`headrace serve` as a process of its own, and its address."""
    words = [*launcher, "serve", str(folder), "--port", "0", "--served-model-name", NAME]
    extra = ["--threads", "1", "--set", "load_format=dummy", *options]
    process = subprocess.Popen([sys.executable, *words, *extra], stderr=subprocess.PIPE, text=True)
    said = []
    try:
        url = None
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"http://\S+", line):
                url = found.group()
                break
        assert url, f"the server did not start: {said}"
        yield process, url
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def wait_for(condition: Callable[[], object], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.005)
