"""What the server asks of an engine, and the one implementation: an ``LLM`` in this process."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Protocol

from headrace.core.clock import Clock
from headrace.core.errors import RequestError
from headrace.core.sampling_params import SamplingParams
from headrace.engine.results import RequestOutput
from headrace.llm import LLM
from headrace.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prompt as the engine takes it."""

    token_ids: list[int]
    text: str | None = None
    """As it was given; None when token ids were."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How a request runs, beside its sampling."""

    priority: float = 0.5
    cache_salt: str | None = None
    timeout: float | None = None
    """Seconds until it ends with what is there."""


class ServedEngine(Protocol):
    """An engine under the server. ``submit`` never blocks; what waits is a coroutine."""

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    @property
    def max_seq_len(self) -> int:
        """Prompt and output together, in tokens."""
        ...

    async def prepare(self, prompt: str | list[int], *, add_special_tokens: bool) -> Prepared:
        """Tokenises. Raises ``RequestError``."""
        ...

    def submit(self, prepared: Prepared, sampling: SamplingParams, terms: Terms) -> RequestOutput:
        """Starts a request: follow it with ``async for``, end it with ``abort()``.

        Raises ``RequestError`` or ``EngineDeadError``; what is decided later (a full queue) is raised by the loop.
        """
        ...

    async def stats(self) -> list[dict[str, Any]]:
        """Iteration statistics since the last call. Raises ``EngineDeadError`` or ``TimeoutError``."""
        ...

    def problem(self) -> str | None:
        """Why the engine cannot serve, or None. To be asked several times a second."""
        ...

    @property
    def is_dead(self) -> bool:
        """True when it will never serve again."""
        ...

    def describe(self) -> dict[str, Any]:
        """The effective configuration, and what the start took."""
        ...


class LlmEngine:
    """``ServedEngine`` over an ``LLM``. Tokenising runs beside the event loop, so a long prompt stalls nobody."""

    def __init__(self, llm: LLM, clock: Clock, heartbeat_limit: float) -> None:
        """``heartbeat_limit``: seconds that one turn of the engine loop may take before it counts as stuck."""
        self._llm = llm
        self._clock = clock
        self._heartbeat_limit = heartbeat_limit
        self._last_idle = clock.now()
        self._description = {
            "config": llm.effective_config,
            "start_seconds": dict(llm.start_report),
            "memory_bytes": dict(llm.memory_report),
        }
        self._max_seq_len = int(llm.effective_config["max_seq_len"])

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._llm.tokenizer

    @property
    def max_seq_len(self) -> int:
        return self._max_seq_len

    async def prepare(self, prompt: str | list[int], *, add_special_tokens: bool) -> Prepared:
        if not isinstance(prompt, str):
            return Prepared(prompt)
        tokenizer = self._llm.tokenizer
        if tokenizer is None:
            raise RequestError("the model was loaded with skip_tokenizer_init=True: give token ids", param="prompt")
        ids = await asyncio.to_thread(tokenizer.encode, prompt, add_special_tokens)
        return Prepared(ids, prompt)

    def submit(self, prepared: Prepared, sampling: SamplingParams, terms: Terms) -> RequestOutput:
        return self._llm.generate_async(
            {"prompt_token_ids": prepared.token_ids},
            sampling,
            streaming=True,
            cache_salt=terms.cache_salt,
            priority=terms.priority,
            timeout=terms.timeout,
        )

    async def stats(self) -> list[dict[str, Any]]:
        return await asyncio.to_thread(self._llm.get_stats)

    def problem(self) -> str | None:
        health = self._llm.health
        if health.dead is not None:
            return str(health.dead)
        now = self._clock.now()
        if health.is_idle:
            self._last_idle = now
            return None
        # An idle loop does not turn, so work that has just come in may find an old heartbeat.
        silent = now - max(health.heartbeat, self._last_idle)
        if silent > self._heartbeat_limit:
            return f"the engine loop has not turned for {silent:.0f} s while work is under way"
        return None

    @property
    def is_dead(self) -> bool:
        return self._llm.health.dead is not None

    def describe(self) -> dict[str, Any]:
        return self._description
