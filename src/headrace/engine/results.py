"""``RequestOutput`` and ``CompletionOutput``: what a user holds. Names and meanings follow TensorRT-LLM's LLM API.

The engine's thread only posts events into a mailbox; the fields of an output change in the thread that reads it (in
``result()``, in a loop over the output, in ``await``), so a reader never sees a half-made state.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from headrace.core.outputs import Logprob, RequestPerfMetrics
from headrace.core.plan import TokenLogprobs
from headrace.core.pooling import Pooled


class OutputEvent(msgspec.Struct, frozen=True):
    """What one engine step adds to one output of a request. Text is already decoded and cut at stop strings."""

    index: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    error: Exception | None = None
    metrics: RequestPerfMetrics | None = None
    """Comes with the finish."""
    pooled: Pooled | None = None
    """Comes with the finish of an encoded prompt."""
    cumulative_logprob: float | None = None
    """Comes with the finish of an output that others were compared with."""
    context_logits: Any = None
    """The next rows of the prompt's logits, if asked for: float32 [rows, V]. They come with output 0."""
    generation_logits: Any = None
    """A row of float32 [V] for each of ``token_ids``, if asked for."""


@dataclass(slots=True)
class CompletionOutput:
    """One of the n outputs of a request."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    """Sum of the logprobs of the output's tokens; None unless logprobs were asked for, or outputs were compared. Of a
    beam they are those after penalties and temperature, whatever logprobs_mode says."""
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    """One entry a token: the token itself and the top k."""
    prompt_logprobs: list[dict[int, Logprob] | None] = field(default_factory=list)
    """One entry a prompt token: entry 0 is None, entry i is about prompt token i."""
    finish_reason: str | None = None
    """stop, length, timeout, cancelled; None while running."""
    stop_reason: int | str | None = None
    """The stop string or stop token id that ended it; None for the end-of-sequence token."""
    request_perf_metrics: RequestPerfMetrics | None = None
    pooled: Pooled | None = None
    """Of a prompt that was encoded: see ``EncodeOutput.data``."""
    _logits: list[np.ndarray] = field(default_factory=list, repr=False)
    _seen_text: int = 0
    _seen_tokens: int = 0
    _seen_logprobs: int = 0

    @property
    def length(self) -> int:
        return len(self.token_ids)

    @property
    def generation_logits(self) -> np.ndarray | None:
        """Float32 [tokens, V]: the model's logits that each token was drawn from, before everything that changes them.
        None unless return_generation_logits asked for them."""
        return np.stack(self._logits) if self._logits else None

    @property
    def text_diff(self) -> str:
        """Text that came with the last step of an iteration over the request."""
        return self.text[self._seen_text :]

    @property
    def token_ids_diff(self) -> list[int]:
        return self.token_ids[self._seen_tokens :]

    @property
    def logprobs_diff(self) -> list[dict[int, Logprob]]:
        return self.logprobs[self._seen_logprobs :]

    def _mark_seen(self) -> None:
        self._seen_text = len(self.text)
        self._seen_tokens = len(self.token_ids)
        self._seen_logprobs = len(self.logprobs)

    def _apply(self, event: OutputEvent) -> None:
        self.text += event.text
        self.token_ids.extend(event.token_ids)
        for entry in event.logprobs:
            self.logprobs.append(_logprob_dict(entry))
            self.cumulative_logprob = (self.cumulative_logprob or 0.0) + entry.logprob
        if event.generation_logits is not None:
            self._logits.extend(event.generation_logits)
        if event.prompt_logprobs and not self.prompt_logprobs:
            self.prompt_logprobs.append(None)
        self.prompt_logprobs.extend(_logprob_dict(entry) for entry in event.prompt_logprobs)
        if event.finish_reason is not None:
            self.finish_reason = event.finish_reason
            self.stop_reason = event.stop_reason
            self.request_perf_metrics = event.metrics
            self.pooled = event.pooled
            if event.cumulative_logprob is not None:
                self.cumulative_logprob = event.cumulative_logprob


def _logprob_dict(entry: TokenLogprobs) -> dict[int, Logprob]:
    tops = zip(entry.top_ids, entry.top_logprobs, strict=True)
    result = {token: Logprob(logprob, rank) for rank, (token, logprob) in enumerate(tops, 1)}
    result.setdefault(entry.token, Logprob(entry.logprob, entry.rank))
    return result


class Mailbox:
    """A queue from whoever brings the news to one reader, which may be a thread or a coroutine."""

    def __init__(self) -> None:
        self._events: deque[OutputEvent] = deque()
        self._lock = threading.Lock()
        self._ready = threading.Condition(self._lock)
        self._n_blocked = 0
        self._waiter: asyncio.Future[None] | None = None

    def post(self, events: list[OutputEvent]) -> None:
        """Called in any thread; never blocks on the reader."""
        with self._lock:
            self._events.extend(events)
            if self._n_blocked:
                self._ready.notify()
            waiter, self._waiter = self._waiter, None
        if waiter is None:
            return
        loop = waiter.get_loop()
        if asyncio._get_running_loop() is loop:
            _wake(waiter)
        elif not loop.is_closed():
            loop.call_soon_threadsafe(_wake, waiter)

    def take(self, timeout: float | None) -> list[OutputEvent]:
        """All events there are; waits for the first. Raises ``TimeoutError``."""
        with self._lock:
            self._n_blocked += 1
            try:
                if not self._ready.wait_for(lambda: self._events, timeout):
                    raise TimeoutError(f"no result within {timeout} seconds")
            finally:
                self._n_blocked -= 1
            return self._drain()

    async def take_async(self) -> list[OutputEvent]:
        """As ``take``, in a coroutine."""
        while True:
            with self._lock:
                if self._events:
                    return self._drain()
                self._waiter = waiter = asyncio.get_running_loop().create_future()
            await waiter

    def _drain(self) -> list[OutputEvent]:
        events = list(self._events)
        self._events.clear()
        return events


def _wake(waiter: asyncio.Future[None]) -> None:
    # It may have been cancelled in between.
    if not waiter.done():
        waiter.set_result(None)


class RequestOutput:
    """A request under way, and its outputs so far.

    Wait for the whole (``result()``, ``await output``), or follow it (``for``, ``async for``): with ``streaming`` each
    turn of the loop yields this object after a step, ``outputs[i].text_diff`` and ``token_ids_diff`` being what is new.
    """

    def __init__(
        self,
        request_id: int,
        prompt: str | None,
        prompt_token_ids: list[int],
        n: int,
        seed: int,
        abort: Callable[[int], None],
        mailbox: Mailbox,
        streaming: bool,
    ) -> None:
        self.request_id = request_id
        self.prompt = prompt
        self.prompt_token_ids = prompt_token_ids
        self.seed = seed
        """The seed that was used: given, or drawn at admission."""
        self.outputs = [CompletionOutput(index) for index in range(n)]
        self._context: list[np.ndarray] = []
        self.disaggregated_params = None
        self.error: Exception | None = None
        self._abort = abort
        self._aborted = False
        self._mailbox = mailbox
        self._streaming = streaming

    def __repr__(self) -> str:
        return f"RequestOutput(request_id={self.request_id}, prompt={self.prompt!r}, outputs={self.outputs})"

    @property
    def finished(self) -> bool:
        """True when every output has ended (as far as this object has been read)."""
        if self.error is not None:
            return True
        for output in self.outputs:  # noqa: SIM110  asked at every step: a generator costs more than the loop
            if output.finish_reason is None:
                return False
        return True

    @property
    def context_logits(self) -> np.ndarray | None:
        """Float32 [prompt tokens, V]: the model's logits after each token of the prompt. None unless
        return_context_logits asked for them."""
        return np.concatenate(self._context) if self._context else None

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that came from the cache; known when the request has finished."""
        first = self.outputs[0].request_perf_metrics
        return first.cached_tokens if first else 0

    @property
    def cache_miss(self) -> str | None:
        """Why not more of them: "disabled", "prompt_logprobs", "no_entry", "evicted" or "out_of_window" (see
        ``MissReason``). None if all that could be were, or before the end."""
        first = self.outputs[0].request_perf_metrics
        return None if first is None or first.cache_miss is None else first.cache_miss.value

    def abort(self) -> None:
        """Cancels the request, in whatever state it is; its outputs end with ``cancelled``."""
        self._aborted = True
        self._abort(self.request_id)

    def aborted(self) -> bool:
        return self._aborted

    def result(self, timeout: float | None = None) -> RequestOutput:
        """Waits for the end. Raises the request's own error, or ``TimeoutError`` (the request goes on)."""
        while not self.finished:
            self._apply(self._mailbox.take(timeout))
        return self._done()

    async def aresult(self) -> RequestOutput:
        """As ``result``, in a coroutine."""
        while not self.finished:
            self._apply(await self._mailbox.take_async())
        return self._done()

    def __await__(self) -> Generator[Any, None, RequestOutput]:
        return self.aresult().__await__()

    def __iter__(self) -> Iterator[RequestOutput]:
        if not self._streaming:
            yield self.result()
        while not self.finished:
            self._step(self._mailbox.take(None))
            yield self

    async def __aiter__(self) -> AsyncIterator[RequestOutput]:
        if not self._streaming:
            yield await self.aresult()
        while not self.finished:
            await self.step()
            yield self

    async def step(self) -> None:
        """Waits for the next step of a request that has not finished: what a turn of ``async for`` does. Raises the
        request's own error."""
        self._step(await self._mailbox.take_async())

    def _step(self, events: list[OutputEvent]) -> None:
        for output in self.outputs:
            output._mark_seen()
        self._apply(events)
        if self.error is not None:
            raise self.error

    def _apply(self, events: list[OutputEvent]) -> None:
        for event in events:
            if event.error is not None:
                self.error = event.error
            if event.context_logits is not None:
                self._context.append(event.context_logits)
            self.outputs[event.index]._apply(event)

    def _done(self) -> RequestOutput:
        if self.error is not None:
            raise self.error
        return self


class EncodeOutput(RequestOutput):
    """A prompt that is encoded, and the result when it has finished. Wait for it as for any request."""

    def __repr__(self) -> str:
        data = self.data
        shown = None if data is None else f"float32 {list(data.shape)}"
        return f"EncodeOutput(request_id={self.request_id}, prompt={self.prompt!r}, data={shown})"

    @property
    def data(self) -> np.ndarray | None:
        """float32: [width], or [rows, width] where rows are not pooled into one (see ``rows``). None before the end."""
        rows, pooled = self.rows, self.outputs[0].pooled
        return rows[0] if rows is not None and pooled is not None and pooled.is_single else rows

    @property
    def rows(self) -> np.ndarray | None:
        """float32 [rows, width]: one row, or one for each token or step with pooling_type "all" or "step"."""
        pooled = self.outputs[0].pooled
        if pooled is None:
            return None
        return np.frombuffer(pooled.values, np.float32).reshape(-1, pooled.width)
