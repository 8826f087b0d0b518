"""Adapters over HTTP: loaded and unloaded while the server runs, and named as the model."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import torch
from asgi_rig import Application, application
from mutations import Raw
from serving_rig import NAME

from headrace.eval import tiny
from tiny_adapters import linear_maps, write_adapter
from tiny_text import write_tokenizer

PROMPT = "abcdefghijklmnopqrstuvwxyz"
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


async def _ask(app: Application, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
    answer = await app.post(path, body)
    return answer.status, json.loads(answer.body)


async def _refusal(app: Application, path: str, **body: Any) -> str:
    status, answer = await _ask(app, path, **body)
    assert status == 400, answer
    return str(answer["error"]["message"])


async def _text(app: Application, model: str) -> str:
    body = {"model": model, "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    status, answer = await _ask(app, "/v1/completions", **body)
    assert (status, answer["model"]) == (200, model)
    return str(answer["choices"][0]["text"])


async def _life(model: Path, adapter: Path, other: Path) -> None:
    lora = {"lora_modules": {"first": str(other)}, "max_loras": 2}
    async with application(model, load_format="auto", dtype="float32", lora_config=lora) as app:
        plain, first = await _text(app, NAME), await _text(app, "first")
        loaded = await _ask(app, LOAD, lora_name="mine", lora_path=str(adapter))
        assert loaded == (200, {"lora_name": "mine", "status": "loaded"})
        mine = await _text(app, "mine")
        assert len({plain, first, mine}) == 3
        together = await asyncio.gather(*(_text(app, name) for name in ("mine", NAME, "first") * 3))
        assert together == [mine, plain, first] * 3
        status, _ = await _ask(app, "/v1/embeddings", model="mine", input="a")
        assert status == 200
        await _refusals(app, adapter)
        await _counts(app, str(adapter))
        assert await _ask(app, UNLOAD, lora_name="mine") == (200, {"lora_name": "mine", "status": "unloaded"})
        assert "has no adapter_config.json" in await _refusal(app, LOAD, lora_name="x", lora_path="/nowhere")
        assert "no adapter 'mine' is loaded" in await _refusal(app, UNLOAD, lora_name="mine")
        status, answer = await _ask(app, "/v1/completions", model="mine", prompt="a")
        assert (status, answer["error"]["code"]) == (404, "model_not_found")
        assert await _text(app, NAME) == plain


async def _counts(app: Application, path: str) -> None:
    (*_, now) = json.loads((await app.ask(Raw("/metrics", b"", "GET"))).body)
    assert [(one["lora_name"], one["requests"]) for one in now["adapters"]] == [("first", 0), ("mine", 0)]
    assert now["adapters"][1]["lora_path"] == path
    text = (await app.ask(Raw("/prometheus/metrics", b"", "GET"))).body.decode()
    # One alone, three together, and one that was encoded.
    assert 'headrace_lora_requests_total{lora_name="mine"} 5.0' in text
    assert 'headrace_lora_requests_total{lora_name="first"} 4.0' in text
    assert 'headrace_lora_requests_running{lora_name="mine"} 0.0' in text


async def _refusals(app: Application, adapter: Path) -> None:
    path = str(adapter)
    assert "is loaded already" in await _refusal(app, LOAD, lora_name="mine", lora_path=path)
    assert "is the model itself" in await _refusal(app, LOAD, lora_name=NAME, lora_path=path)
    assert "finds no place: 2 that were loaded" in await _refusal(app, LOAD, lora_name="x", lora_path=path)
    assert "lora_path" in await _refusal(app, LOAD, lora_name="x")
    asked = {"prompt": "a", "lora_request": {"lora_name": "mine"}}
    assert LOAD in await _refusal(app, "/v1/completions", **asked)


def test_adapters_come_and_go_and_are_named_as_the_model(tmp_path: Path) -> None:
    with torch.no_grad():
        made = tiny.make("llama")
    model = tmp_path / "model"
    tiny.save(made, model)
    write_tokenizer(model, made.config.vocab_size)
    adapters = [write_adapter(tmp_path / f"adapter-{seed}", linear_maps(model), seed=seed) for seed in (1, 2)]
    asyncio.run(_life(model, *adapters))
