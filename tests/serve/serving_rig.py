"""A tiny model behind a real server, which stops by itself."""

from __future__ import annotations

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

from headrace import LLM, KvCacheConfig
from headrace.core.clock import SystemClock
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

    llm: LLM
    server: Server
    serving: Serving
    thread: threading.Thread
    status: list[int]

    @property
    def url(self) -> str:
        return self.server.url

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(**{"base_url": f"{self.url}/v1", "api_key": "-", "max_retries": 0, **options})

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, **({} if body is None else {"json": body}), timeout=60, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=60, **options)

    def idle(self) -> None:
        """Nothing runs, waits, or holds a block."""
        until = time.monotonic() + 20
        while self.serving.jobs or self.llm._engine.front.n_live or not self.llm.health.is_idle:
            assert time.monotonic() < until, "something is still under way"
            time.sleep(0.01)
        self.llm.check_integrity()


@contextmanager
def served(folder: Path, options: dict[str, Any] | None = None, **engine: Any) -> Iterator[Running]:
    settings = {"load_format": "dummy", "num_threads": 1, "kv_cache_config": KvCacheConfig(max_tokens=8192), **engine}
    serve_options = ServeOptions(**{"model_name": NAME, "port": 0, "drain_limit": 5.0, **(options or {})})
    with LLM(folder, **settings) as llm:
        clock = SystemClock()
        serving = Serving(FrontedEngine(llm._engine, llm.args, clock, serve_options.heartbeat_limit), serve_options)
        server = Server(serving)
        ready, status = threading.Event(), []
        thread = threading.Thread(target=lambda: status.append(server.run(ready.set)), name="server")
        thread.start()
        assert ready.wait(10)
        try:
            yield Running(llm, server, serving, thread, status)
        finally:
            server.stop()
            thread.join(20)
            assert not thread.is_alive()


@contextmanager
def slowed(llm: LLM, seconds: float) -> Iterator[None]:
    """Every step takes at least this long, so that a test can be sure to meet a request under way."""
    worker = llm._engine.backend.executor._worker
    execute = worker.execute

    def slow(plan: Any) -> Any:
        time.sleep(seconds)
        return execute(plan)

    worker.execute = slow
    try:
        yield
    finally:
        del worker.execute


@contextmanager
def command(
    folder: Path, *options: str, launcher: Sequence[str] = ("-m", "headrace.cli.main")
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
