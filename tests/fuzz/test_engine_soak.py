"""The real engine for a while: random features, cancels, deadlines and errors in user code; then nothing is left.

What an output is depends on its request alone, so one that ends by itself must say what the same request has said
before, whichever engine it met. ``HEADRACE_SOAK`` says how many seconds (600 in the full tier, 20 in the slow one).
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from draft_heads import write_head
from headrace import (
    LLM,
    DraftTargetDecodingConfig,
    EagleDecodingConfig,
    GuidedDecodingParams,
    KvCacheConfig,
    LoraConfig,
    LoRARequest,
    NGramDecodingConfig,
    PoolingParams,
    RequestError,
    SADecodingConfig,
    SamplingParams,
    UserProvidedDecodingConfig,
)
from headrace.core.sequence import Sequence
from headrace.eval import tiny
from headrace.ops.native import core
from headrace.sampling.guided import _Guide
from tiny_adapters import linear_maps, write_adapter
from tiny_text import write_tokenizer

VOCAB = 317
N_CLIENTS = 12
EPISODE = 8.0
"""Seconds that one engine lives."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("soak")
    with torch.no_grad():
        model = tiny.make("llama")
        tiny.save(model, folder)
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.mul_(1 + 0.04 * torch.randn_like(parameter))
        tiny.save(model, folder / "draft")
    write_head(folder / "head", folder)
    write_tokenizer(folder, VOCAB)
    maps = linear_maps(folder)
    for seed in range(3):
        write_adapter(folder / f"adapter-{seed}", maps, seed=seed, rank=2 + seed)
    return folder


class Nudge:
    """Follows from the tokens; ``fails_at``: raises when there are so many."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at

    def __call__(self, req_id: int, logits: Any, token_ids: list[list[int]], *_: object) -> None:
        (tokens,) = token_ids
        if self.fails_at is not None and len(tokens) >= self.fails_at:
            raise LookupError("a processor of the user's")
        logits[0, 0, (tokens[-1] * 7 + len(tokens)) % 300] += 1.5


def nudge_all(req_ids: list[int], logits: list[Any], token_ids: list[Any], *_: object) -> None:
    for row, tokens in zip(logits, token_ids, strict=True):
        if len(tokens[0]) % 97 == 96:
            raise LookupError("the batched processor")
        Nudge()(0, row, tokens)


def odd_drafter(tokens: list[int], limit: int) -> list[int]:
    if len(tokens) % 61 == 60:
        raise LookupError("the drafter")
    half = tokens[len(tokens) // 2 :]
    return half[:limit]


_EXPECTED = ("drafter of speculative_config failed", "guided_decoding.regex", "no lora")
"""What may be said of a request whose own callbacks do not fail."""


@dataclass(frozen=True)
class Asked:
    """One request; what it is follows from its number."""

    number: int
    prompt: list[int]
    sampling: SamplingParams
    adapter: int | None
    salt: str | None
    encodes: bool

    @property
    def may_fail(self) -> bool:
        return bool(self.sampling.logits_processor or self.sampling.apply_batched_logits_processor)


def asked(number: int) -> Asked:
    chance = random.Random(number)
    stem = random.Random(number % 3)
    prompt = [stem.randrange(3, 300) for _ in range(chance.choice((0, 20, 40, 64, 71)))]
    prompt += [chance.randrange(3, 300) for _ in range(chance.randrange(1, 30))]
    if number % 4 == 0:
        prompt = prompt[:9] * 5
    options: dict[str, Any] = {"max_tokens": chance.choice((1, 8, 24, 40)), "end_id": 2}
    if chance.random() < 0.5:
        options |= {"temperature": 0.9, "seed": number, "n": chance.choice((1, 1, 2, 3))}
        options["best_of"] = chance.choice((None, None, 3))
    elif chance.random() < 0.4:
        options |= {"use_beam_search": True, "best_of": 3, "n": 2}
    if chance.random() < 0.3:
        options["guided_decoding"] = GuidedDecodingParams(regex="([a-d][0-9w]|x[yz]{1,3}){3,60}")
    if chance.random() < 0.3:
        fails_at = chance.choice((None, None, len(prompt), len(prompt) + 5))
        options["logits_processor"] = Nudge(fails_at)
    options["apply_batched_logits_processor"] = chance.random() < 0.2
    if chance.random() < 0.3:
        options |= {"repetition_penalty": 1.3, "min_tokens": min(4, options["max_tokens"]), "no_repeat_ngram_size": 3}
    if chance.random() < 0.3:
        options["logprobs"] = 2
    if chance.random() < 0.2:
        options["prompt_logprobs"] = 1
    if chance.random() < 0.2:
        options["stop"] = list("aeiou")
    adapter = chance.choice((None, None, 0, 1, 2))
    return Asked(
        number, prompt, SamplingParams(**options), adapter, chance.choice((None, None, "salt")), chance.random() < 0.1
    )


def engine_options(chance: random.Random, folder: Path) -> dict[str, Any]:
    cache: dict[str, Any] = {"max_tokens": chance.choice((384, 512, 4096)), "enable_block_reuse": chance.random() < 0.8}
    if cache["enable_block_reuse"] and chance.random() < 0.5:
        cache["host_cache_size"] = chance.choice((1, 1 << 20))
        if chance.random() < 0.5:
            cache |= {"disk_cache_size": 1 << 24, "disk_cache_path": tempfile.gettempdir()}
    drafts = chance.choice(
        (
            lambda: None,
            lambda: NGramDecodingConfig(max_draft_len=3),
            lambda: SADecodingConfig(max_draft_len=3, min_matching_length=1),
            lambda: DraftTargetDecodingConfig(max_draft_len=3, speculative_model=str(folder / "draft")),
            lambda: EagleDecodingConfig(
                max_draft_len=3, speculative_model=str(folder / "head"), eagle3_one_model=chance.random() < 0.5
            ),
            lambda: EagleDecodingConfig(
                max_draft_len=3, speculative_model=str(folder / "head"), use_dynamic_tree=True, dynamic_tree_max_topK=3
            ),
            lambda: UserProvidedDecodingConfig(max_draft_len=3, drafter=odd_drafter),
        )
    )()
    options: dict[str, Any] = {
        "kv_cache_config": KvCacheConfig(**cache),
        "speculative_config": drafts,
        "max_batch_size": chance.choice((4, 8)),
        "disable_overlap_scheduler": chance.random() < 0.2,
        "lora_config": LoraConfig(max_loras=2, max_lora_rank=8),
        "batched_logits_processor": nudge_all,
    }
    if chance.random() < 0.5:
        options["max_num_tokens"] = 40
    if chance.random() < 0.3:
        options["cuda_graph_config"] = None
    return options


def _threads() -> set[threading.Thread]:
    """Those that run, but for the one that watches the bars of all of the process's tqdm."""
    return {thread for thread in threading.enumerate() if thread.name != "tqdm_monitor"}


@dataclass
class Soak:
    """What has been seen, over all engines."""

    folder: Path
    known: dict[int, Any] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)

    def episode(self, seed: int, seconds: float) -> None:
        chance = random.Random(seed)
        options = engine_options(chance, self.folder)
        self.seen[type(options["speculative_config"]).__name__] += 1
        before = _threads()
        with LLM(self.folder, dtype="float32", num_threads=1, **options) as llm:
            asyncio.run(self.clients(llm, chance, time.monotonic() + seconds))
            self.check_rest(llm)
            witnesses = llm.get_stats()[-1]["witnesses"]
            self.seen.update({name: count for name, count in witnesses.items() if isinstance(count, int)})
        del llm
        until = time.monotonic() + 30
        while (left := _threads() - before) and time.monotonic() < until:
            time.sleep(0.05)
        assert not left, f"threads are left: {left}"

    async def clients(self, llm: LLM, chance: random.Random, until: float) -> None:
        seeds = [chance.randrange(1 << 30) for _ in range(N_CLIENTS)]
        async with asyncio.TaskGroup() as group:
            for seed in seeds:
                group.create_task(self.client(llm, random.Random(seed), until))
        assert len(asyncio.all_tasks()) == 1

    async def client(self, llm: LLM, chance: random.Random, until: float) -> None:
        while time.monotonic() < until:
            one = asked(chance.randrange(60))
            try:
                await self.request(llm, one, chance)
            except RequestError as error:
                self.seen["request errors"] += 1
                if not (one.may_fail or any(word in str(error) for word in _EXPECTED)):
                    raise AssertionError(f"request {one.number} failed") from error

    async def request(self, llm: LLM, one: Asked, chance: random.Random) -> None:
        adapter = None
        if one.adapter is not None:
            adapter = LoRARequest(f"a{one.adapter}", 1 + one.adapter, str(self.folder / f"adapter-{one.adapter}"))
        terms = {"priority": chance.choice((0.5, 0.5, 0.0, 1.0)), "cache_salt": one.salt}
        way = chance.random()
        if way < 0.05:
            wrong = SamplingParams(guided_decoding=GuidedDecodingParams(regex="[0-"))
            await llm.generate_async(one.prompt, wrong, **terms)
            raise AssertionError("a bad expression was taken")
        if way < 0.08:
            await llm.generate_async(one.prompt, one.sampling, LoRARequest("no lora", 9, "/nowhere/lora"), **terms)
            raise AssertionError("an adapter that is not there was taken")
        if one.encodes:
            await llm.encode_async(one.prompt, PoolingParams(), adapter, **terms)
            return
        if way < 0.15:
            terms["timeout"] = chance.uniform(0.0, 0.05)
        output = llm.generate_async(one.prompt, one.sampling, adapter, streaming=True, **terms)
        if 0.15 <= way < 0.22:
            output.abort()
        elif 0.22 <= way < 0.32:
            await self.leave_after(output, chance.randrange(1, 4))
        elif 0.32 <= way < 0.4:
            await self.give_up(output, chance.uniform(0.0, 0.05))
        await output.aresult()
        self.compare(one, output)

    @staticmethod
    async def leave_after(output: Any, n_steps: int) -> None:
        count = 0
        async for _ in output:
            count += 1
            if count == n_steps:
                output.abort()

    @staticmethod
    async def give_up(output: Any, seconds: float) -> None:
        """The task that waits is cancelled, and the request goes on without it until it is aborted."""
        try:
            async with asyncio.timeout(seconds):
                await output.aresult()
        except TimeoutError:
            output.abort()

    def compare(self, one: Asked, output: Any) -> None:
        for each in output.outputs:
            self.seen[str(each.finish_reason)] += 1
        if any(each.finish_reason not in ("stop", "length") for each in output.outputs):
            return
        said = [(each.token_ids, each.text, each.finish_reason, each.stop_reason) for each in output.outputs]
        if core.is_available():
            said.append([each.logprobs for each in output.outputs])
        if one.number in self.known:
            self.seen["compared"] += 1
            assert said == self.known[one.number], f"request {one.number} has become another"
        else:
            self.known[one.number] = said

    @staticmethod
    def check_rest(llm: LLM) -> None:
        """Nothing is under way, so nothing is held: neither by the host nor, after one more step, by the worker."""
        engine = llm._engine
        loop = engine.backend.loop
        until = time.monotonic() + 60
        # An output that failed was raised at once; those beside it in its request go on to their own ends.
        while (engine.front.n_live or not loop.is_idle) and time.monotonic() < until:
            time.sleep(0.01)
        assert (engine.front.n_live, loop._held) == (0, {})
        llm.generate([5, 6, 7], SamplingParams(max_tokens=2, end_id=-1))
        while not loop.is_idle and time.monotonic() < until:
            time.sleep(0.01)
        engine.backend.call("check_idle").result(30)
        scheduler = engine.backend._scheduler
        assert (scheduler._requests, scheduler._groups) == ({}, {})
        cache = scheduler.manager.stats()
        assert cache["freeNumBlocks"] == cache["maxNumBlocks"], cache
        assert getattr(scheduler._proposer, "_texts", {}) == {}
        assert [one["requests"] for one in llm.list_loras()] == [0] * len(llm.list_loras())
        processing = engine.backend.executor._worker._runner.sampler
        assert (processing._asked, processing._inner._guides) == ({}, {})
        gc.collect()
        kinds = Counter(type(one).__name__ for one in gc.get_objects() if type(one) in (Sequence, _Guide))
        assert kinds["_Guide"] == 0, kinds
        assert kinds["Sequence"] <= 2, kinds


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(20.0, marks=pytest.mark.slow, id="short"),
        pytest.param(600.0, marks=[pytest.mark.full, pytest.mark.timeout(1500)], id="long"),
    ],
)
def test_nothing_is_left(seconds: float, folder: Path) -> None:
    seconds = float(os.environ.get("HEADRACE_SOAK", seconds))
    first = int(os.environ.get("HEADRACE_TURN", time.time() // 86_400)) * 10_000
    soak, until = Soak(folder), time.monotonic() + seconds
    n_episodes = 0
    while n_episodes < 2 or time.monotonic() < until:
        print(f"episode {first + n_episodes}: {sum(soak.seen.values())} events", flush=True)
        soak.episode(first + n_episodes, min(EPISODE, seconds / 4))
        n_episodes += 1
    print(dict(soak.seen))
    for what in ("stop", "length", "cancelled", "request errors", "compared", "masked_rows", "adapter_rows"):
        assert soak.seen[what] > 0, f"no {what} in {dict(soak.seen)}"
