"""Many conversations over a cache that is much too small: what was pushed out comes back, and nothing changes."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace import (
    LLM,
    KvCacheConfig,
    KvCacheRetentionConfig,
    RequestError,
    SamplingParams,
    TokenRangeRetentionConfig,
)
from headrace.eval import tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name in ("llama", "gemma3-untied-window-40", "nemotron-h"):
        made[name] = tmp_path_factory.mktemp(name)
        with torch.no_grad():
            tiny.save(tiny.make(name), made[name])
    return made


def _turns(n: int, seed: int = 5) -> tuple[list[list[int]], list[list[int]]]:
    rng = random.Random(seed)

    def some(least: int, most: int) -> list[int]:
        return [rng.randrange(3, 300) for _ in range(rng.randint(least, most))]

    return [some(70, 110) for _ in range(n)], [some(3, 30) for _ in range(n)]


def _options(index: int) -> SamplingParams:
    if index % 2:
        return SamplingParams(max_tokens=8, end_id=-1, temperature=0.9, seed=index, logprobs=1)
    return SamplingParams(max_tokens=8, end_id=-1, logprobs=1)


def _talk(llm: LLM, openings: list[list[int]], replies: list[list[int]]) -> list[list[Any]]:
    """Two turns of every conversation: all first ones, then the second ones, the last conversation first."""
    options = [_options(index) for index in range(len(openings))]
    first = [one.outputs[0] for one in llm.generate(openings, options, use_tqdm=False)]
    seconds = [
        opening + list(one.token_ids) + reply for opening, one, reply in zip(openings, first, replies, strict=True)
    ]
    second = [one.outputs[0] for one in llm.generate(seconds[::-1], options[::-1], use_tqdm=False)]
    # The reference operators promise tokens, the native ones the bits of logprobs too.
    is_exact = set(llm.effective_config["operators"].values()) == {"native"}
    return [[(list(one.token_ids), one.logprobs if is_exact else None) for one in turn] for turn in (first, second)]


def _run(
    folder: Path, conversations: tuple, cache: dict[str, Any], **args: Any
) -> tuple[list[list[Any]], dict[str, int]]:
    with LLM(
        folder, dtype="float32", skip_tokenizer_init=True, num_threads=1, kv_cache_config=KvCacheConfig(**cache), **args
    ) as llm:
        got = _talk(llm, *conversations)
        llm.check_integrity()
        return got, llm.get_stats()[-1]["witnesses"]


def _tiers(folder: Path, host: int, disk: int) -> dict[str, Any]:
    return {"host_cache_size": host, "disk_cache_size": disk, "disk_cache_path": str(folder)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma3-untied-window-40", "nemotron-h"])
def test_200_conversations_over_a_cache_ten_times_too_small(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    conversations = _turns(200)
    plain, _ = _run(folders[name], conversations, {"enable_block_reuse": False, "enable_partial_reuse": False})
    n_tokens = sum(len(one) + 8 for one in conversations[0])
    with LLM(folders[name], dtype="float32", skip_tokenizer_init=True) as llm:
        per_token = dict(llm.memory_report)["KV cache"] / llm.effective_config["kv_cache_tokens"]
    host = int(n_tokens * per_token * 0.3)
    cache = {"max_tokens": n_tokens // 10, **_tiers(tmp_path, host, 1 << 26)}
    got, seen = _run(folders[name], conversations, cache)
    assert got == plain
    assert seen["cached_tokens.host"] > 1000, seen
    assert seen["cached_tokens.disk"] > 1000, seen
    print({key: value for key, value in seen.items() if "cached" in key or "blocks" in key})


def test_a_damaged_disk_costs_hits_and_never_an_answer(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    conversations = _turns(10)
    folder = folders["llama"]
    plain, _ = _run(folder, conversations, {"enable_block_reuse": False, "enable_partial_reuse": False})
    cache = KvCacheConfig(max_tokens=256, **_tiers(tmp_path, 1 << 16, 1 << 26))
    with LLM(folder, dtype="float32", skip_tokenizer_init=True, num_threads=1, kv_cache_config=cache) as llm:
        first = _talk(llm, conversations[0], conversations[1])
        _overwrite(tmp_path)
        with caplog.at_level(logging.WARNING, "headrace"):
            again = _talk(llm, *conversations)
        seen = llm.get_stats()[-1]["witnesses"]
        llm.check_integrity()
    assert first == again == plain
    assert seen["disk_failures"] > 0
    assert "checksum" in caplog.text


def _overwrite(folder: Path) -> None:
    """Spoils every block of the file without a name that this process has open in ``folder``."""
    links = {path: os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
    (mine,) = [path for path, target in links.items() if target.startswith(str(folder))]
    with mine.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        file.write(b"\xa5" * size)


def test_a_request_that_cannot_be_kept_is_refused_and_one_that_can_is(folders: dict[str, Path]) -> None:
    keep = KvCacheRetentionConfig(token_range_retention_configs=[TokenRangeRetentionConfig(0, 64, 90)])
    rng = random.Random(8)
    texts = [[rng.randrange(3, 300) for _ in range(96)] for _ in range(6)]
    options = SamplingParams(max_tokens=1, end_id=-1)
    args = {"dtype": "float32", "skip_tokenizer_init": True, "num_threads": 1}
    with LLM(folders["llama"], kv_cache_config=KvCacheConfig(max_tokens=256), **args) as llm:
        llm.generate(texts[0], options, kv_cache_retention_config=keep)
        llm.generate(texts[1:], [options] * 5, use_tqdm=False, kv_cache_retention_config=[None] * 5)
        assert llm.generate(texts[0], options).cached_tokens == 64
        again = llm.generate(texts[1], options)
        assert (again.cached_tokens, again.cache_miss) == (0, "evicted")
        new = [5, *texts[1][1:]]
        assert llm.generate(new, options).cache_miss == "no_entry"
        once_more = llm.generate(new, options)
        assert (once_more.cached_tokens, once_more.cache_miss) == (95, None)
        told = SamplingParams(max_tokens=1, end_id=-1, prompt_logprobs=1)
        assert llm.generate(new, told).cache_miss == "prompt_logprobs"
        with pytest.raises(RequestError, match="kv_cache_retention_config has 1 entries for 2 prompts"):
            llm.generate(texts[:2], options, kv_cache_retention_config=[keep])
        late = KvCacheRetentionConfig(token_range_retention_configs=[TokenRangeRetentionConfig(200, 300, 90)])
        with pytest.raises(RequestError, match="token_start=200, and the prompt has 96 tokens"):
            llm.generate(texts[0], options, kv_cache_retention_config=late)
    with (
        LLM(folders["llama"], kv_cache_config=KvCacheConfig(enable_block_reuse=False), **args) as llm,
        pytest.raises(RequestError, match="kv_cache_retention_config: nothing is kept here"),
    ):
        llm.generate(texts[0], options, kv_cache_retention_config=keep)


def test_events_are_there_for_those_who_ask(folders: dict[str, Path]) -> None:
    config = KvCacheConfig(max_tokens=256, event_buffer_max_size=50)
    args = {"dtype": "float32", "skip_tokenizer_init": True, "num_threads": 1}
    with LLM(folders["llama"], kv_cache_config=config, **args) as llm:
        llm.generate(list(range(5, 70)), SamplingParams(max_tokens=1, end_id=-1))
        created, stored = (event["data"] for event in llm.get_kv_cache_events())
        assert (created["type"], len(stored["blocks"])) == ("created", 2)
        assert asyncio.run(llm.get_kv_cache_events_async()) == []
