"""What the server asks of an engine, and the one implementation: a front here, whose backend may be anywhere."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Protocol

from headrace.core.clock import Clock
from headrace.core.config import LlmArgs
from headrace.core.errors import EngineDeadError, RequestError
from headrace.core.lora import LoRARequest
from headrace.core.media import MediaData, MediaItem
from headrace.core.pooling import PoolingParams, PoolingSpec
from headrace.core.reasoning import Reasoning
from headrace.core.retention import KvCacheRetentionConfig
from headrace.core.sampling_params import SamplingParams
from headrace.engine.engine import Engine
from headrace.engine.results import RequestOutput
from headrace.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prompt as the engine takes it."""

    token_ids: list[int]
    text: str | None = None
    """As it was given; None when token ids were."""
    second_from: int | None = None
    """Where the second of two texts begins."""
    media: tuple[MediaItem, ...] = ()


@dataclass(frozen=True, slots=True)
class Terms:
    """How a request runs, beside its sampling."""

    priority: float = 0.5
    cache_salt: str | None = None
    timeout: float | None = None
    """Seconds until it ends with what is there."""
    lora: LoRARequest | None = None
    """The adapter it is computed with."""
    retention: KvCacheRetentionConfig | None = None


class ServedEngine(Protocol):
    """An engine under the server. ``submit`` never blocks; what waits is a coroutine."""

    def connect(self, loop: asyncio.AbstractEventLoop) -> None:
        """Called once in the server's event loop, before the first request."""
        ...

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    @property
    def max_seq_len(self) -> int:
        """Prompt and output together, in tokens."""
        ...

    @property
    def media_kinds(self) -> tuple[str, ...]:
        """What the model reads beside text."""
        ...

    @property
    def reasoning(self) -> Reasoning | None:
        """How outputs mark their thinking; None: nothing is taken apart."""
        ...

    async def prepare(
        self, prompt: str | list[int], *, add_special_tokens: bool, media: MediaData | None = None
    ) -> Prepared:
        """Tokenises, and reads what media come with it. Raises ``RequestError``."""
        ...

    @property
    def pooling(self) -> PoolingSpec:
        """What the model gives for a prompt that is encoded."""
        ...

    async def prepare_pair(self, first: str, second: str) -> Prepared:
        """Tokenises two texts that are read together. Raises ``RequestError``."""
        ...

    def submit(self, prepared: Prepared, params: SamplingParams | PoolingParams, terms: Terms) -> RequestOutput:
        """Starts a request: follow it with ``async for``, end it with ``abort()``. With ``PoolingParams`` the prompt is
        encoded, and the output is an ``EncodeOutput``.

        Raises ``RequestError`` or ``EngineDeadError``; what is decided later (a full queue) is raised by the loop.
        """
        ...

    @property
    def first_adapters(self) -> tuple[str, ...]:
        """Names of those that were loaded at the start."""
        ...

    async def load_adapter(self, name: str, path: str) -> None:
        """Raises ``RequestError`` or ``EngineDeadError``."""
        ...

    async def unload_adapter(self, name: str) -> None:
        """Those under way finish with it. Raises ``RequestError`` or ``EngineDeadError``."""
        ...

    async def stats(self) -> list[dict[str, Any]]:
        """Iteration statistics since the last call; the last entry has the adapters as well, where there can be some.
        Raises ``EngineDeadError`` or ``TimeoutError``."""
        ...

    async def kv_cache_events(self) -> list[dict[str, Any]]:
        """Events of the KV cache since the last call. Raises ``RequestError`` where none are kept, and as ``stats``."""
        ...

    def problem(self) -> str | None:
        """Why the engine will never serve again, or None. To be asked several times a second: one that is found stuck
        is given up here, and what it was to do has then failed."""
        ...

    def describe(self) -> dict[str, Any]:
        """The effective configuration, and what the start took."""
        ...


_STATS_LIMIT = 2.0
"""Seconds until /metrics says that the engine does not answer."""


class FrontedEngine:
    """``ServedEngine`` over an ``Engine``. Tokenising runs beside the event loop, so a long prompt stalls nobody."""

    def __init__(self, engine: Engine, args: LlmArgs, clock: Clock, heartbeat_limit: float) -> None:
        """``args``: what it was built from. ``heartbeat_limit``: seconds that one turn of the engine loop may take
        before it counts as stuck."""
        self._engine = engine
        self._clock = clock
        self._heartbeat_limit = heartbeat_limit
        self._takes_adapters = args.lora is not None
        self._first_adapters = () if args.lora is None else tuple(args.lora.at_start)
        self._description = {
            "config": args.model_dump(mode="json") | engine.effective,
            "start_seconds": dict(engine.report.phases),
            "memory_bytes": dict(engine.report.memory),
        }

    def connect(self, loop: asyncio.AbstractEventLoop) -> None:
        self._engine.connect(loop)

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._engine.tokenizer

    @property
    def max_seq_len(self) -> int:
        return self._engine.report.max_seq_len

    @property
    def media_kinds(self) -> tuple[str, ...]:
        return self._engine.front.media_kinds

    @property
    def reasoning(self) -> Reasoning | None:
        return self._engine.reasoning

    async def prepare(
        self, prompt: str | list[int], *, add_special_tokens: bool, media: MediaData | None = None
    ) -> Prepared:
        if not isinstance(prompt, str):
            return Prepared(prompt)
        ids = await asyncio.to_thread(self._tokenizer().encode, prompt, add_special_tokens)
        if not media:
            return Prepared(ids, prompt)
        placed, items = await asyncio.to_thread(self._engine.front.read_media, tuple(ids), media)
        return Prepared(list(placed), prompt, media=items)

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise RequestError("the model was loaded with skip_tokenizer_init=True: give token ids", param="prompt")
        return self.tokenizer

    @property
    def pooling(self) -> PoolingSpec:
        return self._engine.report.pooling

    async def prepare_pair(self, first: str, second: str) -> Prepared:
        tokenizer = self._tokenizer()
        ids, begins = await asyncio.to_thread(tokenizer.encode_pair, first, second)
        return Prepared(ids, second_from=begins)

    def submit(self, prepared: Prepared, params: SamplingParams | PoolingParams, terms: Terms) -> RequestOutput:
        front = self._engine.front
        options: dict[str, Any] = {"priority": terms.priority, "timeout": terms.timeout, "cache_salt": terms.cache_salt}
        options["lora_request"] = terms.lora
        if isinstance(params, PoolingParams):
            _, ids, pooling, _, media = front.prepare_encode(prepared.token_ids, params, prepared.media)
            return front.encode(prepared.text, ids, pooling, prepared.second_from, media, streaming=True, **options)
        _, ids, media = front.prepare(prepared.token_ids, params, prepared.media)
        options["kv_cache_retention_config"] = terms.retention
        return front.submit(prepared.text, ids, params, streaming=True, media=media, **options)

    @property
    def first_adapters(self) -> tuple[str, ...]:
        return self._first_adapters

    async def load_adapter(self, name: str, path: str) -> None:
        await asyncio.wrap_future(self._engine.backend.call("load_adapter", name, path))

    async def unload_adapter(self, name: str) -> None:
        await asyncio.wrap_future(self._engine.backend.call("unload_adapter", name))

    async def stats(self) -> list[dict[str, Any]]:
        entries = await self._engine.get_stats_async(_STATS_LIMIT)
        if self._takes_adapters:
            asked = asyncio.wrap_future(self._engine.backend.call("adapters"))
            entries[-1]["adapters"] = await asyncio.wait_for(asked, _STATS_LIMIT)
        return entries

    async def kv_cache_events(self) -> list[dict[str, Any]]:
        answer = asyncio.wrap_future(self._engine.backend.call("kv_cache_events"))
        events: list[dict[str, Any]] = await asyncio.wait_for(answer, _STATS_LIMIT)
        return events

    def problem(self) -> str | None:
        health = self._engine.health
        if health.dead is not None:
            return str(health.dead)
        silent = self._clock.now() - health.heartbeat
        if silent <= self._heartbeat_limit:
            return None
        error = EngineDeadError(
            f"the engine is stuck: its loop has not turned for {silent:.1f} s, and the heartbeat limit is"
            f" {self._heartbeat_limit:g} s; raise it if a step may take that long"
        )
        self._engine.backend.kill(error)
        return str(error)

    def describe(self) -> dict[str, Any]:
        return self._description
