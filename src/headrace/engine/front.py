"""The front: prompts become requests, updates become outputs.

It runs in the caller's thread (``submit``, ``abort``) and in the one that brings the news (``deliver``, ``fail``): the
loop's own, or the event loop that reads from the engine's process. User code never runs here.
"""

from __future__ import annotations

import itertools
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.core.clock import Clock
from headrace.core.errors import EngineDeadError, PromptTooLongError, RequestError
from headrace.core.features import refuse_missing_sampling
from headrace.core.lora import LoRARequest
from headrace.core.media import MediaData, MediaItem
from headrace.core.outputs import RequestPerfMetrics, SequenceUpdate
from headrace.core.plan import FinishReason
from headrace.core.pooling import Pooling, PoolingParams, PoolingSpec, resolve_pooling
from headrace.core.request import Request
from headrace.core.retention import USUAL_ASKS, Asks, KvCacheRetentionConfig, asks_of
from headrace.core.sampling_params import SamplingParams, check_tokens
from headrace.media.contract import MediaProcessor
from headrace.tokenizer.tokenizer import Tokenizer

from .backend import Backend
from .best_of import BestOf
from .results import EncodeOutput, Mailbox, OutputEvent, RequestOutput
from .text import DecodedText, NoText, StoppedText, TextStream

_USUAL_PRIORITY = 0.5
_NOTHING_SAMPLED = SamplingParams(max_tokens=1, detokenize=False)


@dataclass(frozen=True, slots=True)
class FrontLimits:
    """What the front checks before a request is handed to the engine."""

    vocab_size: int
    max_seq_len: int
    max_input_len: int
    eos_ids: frozenset[int]
    pooling: PoolingSpec
    takes_adapters: bool
    keeps_prefixes: bool


@dataclass(slots=True)
class _Live:
    """A request under way."""

    request: Request
    mailbox: Mailbox
    streams: list[TextStream]
    metrics: list[RequestPerfMetrics]
    open: set[int] = field(default_factory=set)
    best_of: BestOf | None = None
    """Keeps the outputs until the best are known; None: each comes as it is made."""


class Front:
    """Owns the requests under way; ``backend`` runs them."""

    def __init__(
        self,
        limits: FrontLimits,
        tokenizer: Tokenizer | None,
        clock: Clock,
        backend: Backend,
        media: MediaProcessor | None = None,
    ) -> None:
        self._limits = limits
        self._tokenizer = tokenizer
        self._clock = clock
        self._ids = itertools.count(1)
        self._live: dict[int, _Live] = {}
        self._lock = threading.Lock()
        self._backend = backend
        self._media = media
        self.counters: Counter[str] = Counter()
        """Witnesses counted here: forked_outputs, outputs_compared, prioritised, stop_string_hits."""

    @property
    def n_live(self) -> int:
        return len(self._live)

    @property
    def media_kinds(self) -> tuple[str, ...]:
        """What the model reads beside text."""
        return () if self._media is None else self._media.kinds

    def prepare(
        self, prompt: str | Sequence[int], sampling: SamplingParams, media: MediaData | tuple[MediaItem, ...] = ()
    ) -> tuple[str | None, tuple[int, ...], tuple[MediaItem, ...]]:
        """(text, token ids, media) of a prompt, checked and truncated. ``media``: as they were given, or as
        ``read_media`` gave them. Raises ``RequestError``."""
        pooling = self._limits.pooling
        if not pooling.generates:
            raise RequestError(
                f"this model gives {pooling.gives}, no text: encode the prompt (LLM.encode, POST /pooling)",
                param="model",
            )
        refuse_missing_sampling(sampling)
        check_tokens(sampling, self._limits.vocab_size)
        text = prompt if isinstance(prompt, str) else None
        ids, read = self._ids_of(prompt, sampling, self._limits.max_input_len, media)
        if sampling.guided_decoding is not None and not self._eos_ids(sampling):
            raise RequestError(
                "guided_decoding: the end of the grammar is an end token, and there is none; leave ignore_eos off and"
                " end_id out",
                param="guided_decoding",
            )
        if self._tokenizer is None and (sampling.stop or sampling.bad):
            raise RequestError("stop and bad words need a tokenizer; give stop_token_ids / bad_token_ids", param="stop")
        return text, ids, read

    def read_media(self, ids: tuple[int, ...], data: MediaData) -> tuple[tuple[int, ...], tuple[MediaItem, ...]]:
        """The prompt with its places for media, and the media as the model's encoder reads them. Raises
        ``RequestError``. Reading takes time: a caller that must not wait does it on another thread."""
        if self._media is not None:
            return self._media(ids, data)
        if data:
            raise RequestError("this model reads text only; leave multi_modal_data out", param="multi_modal_data")
        return ids, ()

    def prepare_encode(
        self,
        prompt: str | Sequence[int],
        params: PoolingParams,
        media: MediaData | tuple[MediaItem, ...] = (),
        second: str | None = None,
    ) -> tuple[str | None, tuple[int, ...], Pooling, int | None, tuple[MediaItem, ...]]:
        """As ``prepare``, for a prompt that is encoded: (text, token ids, what is to be taken from its rows, where the
        second text begins in it if one is given, media)."""
        spec, begins = self._limits.pooling, None
        ids: Sequence[int] | str = prompt
        if second is not None:
            ids, begins = self._pair(prompt, second, params)
        ids, read = self._ids_of(ids, params, self._limits.max_seq_len, media)
        tag = None if self._tokenizer is None or spec.step_tag is None else self._tokenizer.token_to_id(spec.step_tag)
        pooling = resolve_pooling(params, spec, tag, ids)
        return prompt if isinstance(prompt, str) else None, ids, pooling, begins, read

    def encode(
        self,
        text: str | None,
        token_ids: tuple[int, ...],
        pooling: Pooling,
        second_from: int | None = None,
        media: tuple[MediaItem, ...] = (),
        **options: Any,
    ) -> EncodeOutput:
        """As ``submit``, for a prompt that is encoded. ``options``: those of ``submit``."""
        options |= {"pooling": pooling, "second_from": second_from, "media": media}
        output = self.submit(text, token_ids, _NOTHING_SAMPLED, **options)
        assert isinstance(output, EncodeOutput)
        return output

    def submit(
        self,
        text: str | None,
        token_ids: tuple[int, ...],
        sampling: SamplingParams,
        *,
        streaming: bool = False,
        priority: float = _USUAL_PRIORITY,
        timeout: float | None = None,
        cache_salt: str | None = None,
        pooling: Pooling | None = None,
        second_from: int | None = None,
        media: tuple[MediaItem, ...] = (),
        lora_request: LoRARequest | None = None,
        kv_cache_retention_config: KvCacheRetentionConfig | None = None,
    ) -> RequestOutput:
        """Hands a prepared prompt to the engine. Raises ``RequestError`` or ``EngineDeadError``."""
        if not 0.0 <= priority <= 1.0:
            raise RequestError(f"priority={priority}: give a number from 0 to 1, higher goes first", param="priority")
        if lora_request is not None and not self._limits.takes_adapters:
            raise RequestError(
                "lora_request: this engine was started without adapters; start it with enable_lora=True",
                param="lora_request",
            )
        now = self._clock.now()
        request = Request(
            request_id=next(self._ids),
            prompt_token_ids=token_ids,
            sampling=_with_logprobs(self._with_bad_ids(sampling)),
            seed=secrets.randbits(63) if sampling.seed is None else sampling.seed,
            arrival=now,
            eos_ids=self._eos_ids(sampling),
            priority=priority,
            deadline=None if timeout is None else now + timeout,
            cache_salt=cache_salt,
            asks=self._asks(kv_cache_retention_config, len(token_ids)),
            media=media,
            pooling=pooling,
            second_from=second_from,
            lora=lora_request,
        )
        mailbox = Mailbox()
        live = _Live(
            request,
            mailbox,
            [self._stream(request) for _ in range(request.n)],
            [RequestPerfMetrics(arrival_time=now) for _ in range(request.n)],
            set(range(request.n)),
            _best_of(request, sampling),
        )
        with self._lock:
            self._live[request.request_id] = live
            self.counters["forked_outputs"] += request.n - 1
            self.counters["outputs_compared"] += request.n if live.best_of else 0
            self.counters["prioritised"] += priority != _USUAL_PRIORITY
        try:
            self._backend.submit(request)
        except BaseException:
            with self._lock:
                self._live.pop(request.request_id, None)
            raise
        kind = RequestOutput if pooling is None else EncodeOutput
        return kind(request.request_id, text, list(token_ids), sampling.n, request.seed, self.abort, mailbox, streaming)

    def _asks(self, config: KvCacheRetentionConfig | None, n_prompt: int) -> Asks:
        if config is None:
            return USUAL_ASKS
        if not self._limits.keeps_prefixes:
            raise RequestError(
                "kv_cache_retention_config: nothing is kept here once a request has ended; start with"
                " KvCacheConfig(enable_block_reuse=True) and a decoder, or leave it out",
                param="kv_cache_retention_config",
            )
        return asks_of(config, n_prompt)

    def abort(self, request_id: int) -> None:
        """Cancels a request; one that has ended already is left as it is."""
        if request_id in self._live:
            self._backend.cancel(request_id)

    def deliver(self, updates: list[SequenceUpdate]) -> None:
        """Takes the news of a step: decodes, cuts at stop strings, and posts to the outputs."""
        news: dict[int, list[OutputEvent]] = {}
        for update in updates:
            live = self._live.get(update.request_id)
            if live is None or update.index not in live.open:
                continue
            event = self._event(live, update)
            events = [event] if live.best_of is None else live.best_of.take(event)
            if update.request_id in news:
                news[update.request_id] += events
            else:
                news[update.request_id] = events
        for request_id, events in news.items():
            live = self._live[request_id]
            if not live.open:
                with self._lock:
                    del self._live[request_id]
            if events:
                live.mailbox.post(events)

    def fail(self, error: EngineDeadError) -> None:
        """Ends all requests under way with ``error``."""
        with self._lock:
            failed = list(self._live.values())
            self._live.clear()
        for live in failed:
            live.mailbox.post(
                [
                    OutputEvent(index, finish_reason=FinishReason.ERROR.value, error=error)
                    for index in range(live.request.sampling.n)
                    if live.best_of is not None or index in live.open
                ]
            )

    def _event(self, live: _Live, update: SequenceUpdate) -> OutputEvent:
        step = live.streams[update.index].push(update)
        finish, stop_reason = update.finish_reason, update.stop_reason
        if step.stop is not None:
            self.counters["stop_string_hits"] += 1
            if finish is None:
                self._backend.finish(update.request_id, update.index, FinishReason.STOP)
            finish, stop_reason = FinishReason.STOP, step.stop
        metrics = self._measure(live.metrics[update.index], update)
        if finish is not None:
            live.open.discard(update.index)
        return OutputEvent(
            index=update.index,
            text=step.text,
            token_ids=update.tokens[: step.n_tokens],
            logprobs=update.logprobs[: step.n_tokens],
            prompt_logprobs=update.prompt_logprobs,
            finish_reason=None if finish is None else finish.value,
            stop_reason=stop_reason,
            error=update.error,
            pooled=update.pooled,
            metrics=metrics if finish is not None else None,
            cumulative_logprob=update.cumulative_logprob,
            context_logits=update.context_logits,
            generation_logits=None if update.generation_logits is None else update.generation_logits[: step.n_tokens],
        )

    @staticmethod
    def _measure(metrics: RequestPerfMetrics, update: SequenceUpdate) -> RequestPerfMetrics:
        if update.tokens or update.pooled is not None:
            if metrics.first_token_time is None:
                metrics.first_token_time = update.time
            metrics.last_token_time = update.time
        metrics.cached_tokens, metrics.cache_miss = update.cached_tokens, update.cache_miss
        metrics.preemptions = update.n_preempted
        metrics.first_scheduled_time = update.first_scheduled
        metrics.draft_tokens, metrics.accepted_draft_tokens = update.n_drafts, update.n_accepted
        return metrics

    def _stream(self, request: Request) -> TextStream:
        if self._tokenizer is None or not request.sampling.detokenize:
            return NoText()
        kind = StoppedText if request.sampling.stop else DecodedText
        return kind(request, self._tokenizer)

    def _pair(self, first: str | Sequence[int], second: str, params: PoolingParams) -> tuple[list[int], int]:
        """Token ids of two texts that are read together, and where the second begins."""
        if params.truncate_prompt_tokens is not None:
            message = "truncate_prompt_tokens cuts one text, and two are given; shorten them"
            raise RequestError(message, param="truncate_prompt_tokens")
        if self._tokenizer is None or not isinstance(first, str):
            raise RequestError("a pair is two texts, and takes a tokenizer", param="text_pair")
        return self._tokenizer.encode_pair(first, second, params.add_special_tokens)

    def _ids_of(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | PoolingParams,
        most: int,
        media: MediaData | tuple[MediaItem, ...],
    ) -> tuple[tuple[int, ...], tuple[MediaItem, ...]]:
        """Token ids of a prompt, truncated and checked, and its media; ``most`` tokens are taken."""
        ids = self._encoded(prompt, params)
        if isinstance(media, tuple) and media:
            read = media
        else:
            ids, read = self.read_media(ids, dict(media))
        self._check_ids(ids, most, read)
        return ids, read

    def _encoded(self, prompt: str | Sequence[int], params: SamplingParams | PoolingParams) -> tuple[int, ...]:
        """Token ids of a prompt, truncated."""
        if not isinstance(prompt, str):
            ids = tuple(int(token) for token in prompt)
        elif self._tokenizer is None:
            raise RequestError("the model was loaded with skip_tokenizer_init=True: give token ids", param="prompt")
        else:
            ids = tuple(self._tokenizer.encode(prompt, add_special_tokens=params.add_special_tokens))
        if params.truncate_prompt_tokens is not None:
            ids = ids[-params.truncate_prompt_tokens :]
        return ids

    def _check_ids(self, ids: tuple[int, ...], most: int, media: tuple[MediaItem, ...]) -> None:
        limits = self._limits
        if not ids:
            raise RequestError("the prompt is empty; give at least one token", param="prompt")
        # What stands for media may lie beyond the vocabulary.
        places = {ids[item.first] for item in media}
        worst = max(ids, key=lambda token: 0 if token in places else token if token >= 0 else limits.vocab_size - token)
        worst = 0 if worst in places else worst
        if not 0 <= worst < limits.vocab_size:
            raise RequestError(f"token id {worst} is outside the vocabulary of {limits.vocab_size}", param="prompt")
        if len(ids) > most:
            raise PromptTooLongError(
                f"the prompt has {len(ids)} tokens; at most {most} are taken"
                f" (max_seq_len={limits.max_seq_len}). Shorten it, set truncate_prompt_tokens, or raise max_seq_len",
                param="prompt",
            )

    def _eos_ids(self, sampling: SamplingParams) -> frozenset[int]:
        if sampling.ignore_eos or sampling.end_id == -1:
            return frozenset()
        if sampling.end_id is not None:
            return frozenset((sampling.end_id,))
        return self._limits.eos_ids

    def _with_bad_ids(self, sampling: SamplingParams) -> SamplingParams:
        """Bad words as token sequences, each with and without a space before it, as it may stand in a text."""
        if not sampling.bad or self._tokenizer is None:
            return sampling
        encode: Callable[[str], list[int]] = lambda text: self._tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
        spelled = {tuple(encode(form)) for word in sampling.bad for form in (word, " " + word.lstrip())}
        if () in spelled:
            raise RequestError(f"bad={sampling.bad}: a word is no token in this vocabulary; leave it out", param="bad")
        return sampling.model_copy(update={"bad_token_ids": (sampling.bad_token_ids or ()) + tuple(sorted(spelled))})


def _with_logprobs(sampling: SamplingParams) -> SamplingParams:
    """Outputs that are compared need them."""
    if sampling.logprobs is not None or sampling.use_beam_search or (sampling.best_of or 1) <= sampling.n:
        return sampling
    return sampling.model_copy(update={"logprobs": 0})


def _best_of(request: Request, asked: SamplingParams) -> BestOf | None:
    if request.n == asked.n:
        return None
    return BestOf(request.n, asked.n, shows_logprobs=asked.logprobs is not None)
