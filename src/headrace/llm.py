"""``LLM``: the Python API. Names and semantics follow TensorRT-LLM's LLM API: one changed import moves a user."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING, Any, Self, TypeVar

from tqdm import tqdm

from headrace.core.config import LlmArgs
from headrace.core.errors import RequestError, did_you_mean
from headrace.core.lora import LoRARequest
from headrace.core.outputs import EngineHealth
from headrace.core.pooling import PoolingParams
from headrace.core.retention import KvCacheRetentionConfig
from headrace.core.sampling_params import SamplingParams
from headrace.runner import openmp  # noqa: F401  before torch

if TYPE_CHECKING:
    from headrace.engine.front import Front
    from headrace.engine.results import EncodeOutput, RequestOutput
    from headrace.tokenizer.tokenizer import Tokenizer

log = logging.getLogger("headrace")

Prompt = str | Sequence[int] | Mapping[str, Any]
"""A text, token ids, or a dict with ``prompt`` or ``prompt_token_ids``, and for a model that reads media
``multi_modal_data``: ``{"image": [...]}`` with PIL pictures, bytes, paths or ``data:`` URLs."""

Output = TypeVar("Output", bound="RequestOutput")

_RETENTION = (KvCacheRetentionConfig, type(None))
_PROMPT_KEYS = ("prompt", "prompt_token_ids")


class LLM:
    """A model, loaded and ready to generate.

    ``model`` is a built-in name ("smollm2", "gemma3-270m"), a folder, a .gguf file or a hub id; the options are the
    fields of ``core.config.LlmArgs``. Raises ``ConfigError``, ``ModelError`` or ``CheckpointError``.
    """

    def __init__(self, model: Any, **options: Any) -> None:
        from headrace.engine.build import build_engine

        self.args = LlmArgs.from_call(model, options)
        self._engine = build_engine(self.args)

    # Generating.

    def generate(
        self,
        inputs: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
        *,
        cache_salt: str | Sequence[str | None] | None = None,
        kv_cache_retention_config: KvCacheRetentionConfig | Sequence[KvCacheRetentionConfig | None] | None = None,
        priority: float | Sequence[float] = 0.5,
        timeout: float | None = None,
    ) -> RequestOutput | list[RequestOutput]:
        """Generates for one prompt or for a list of them, and waits for all.

        ``sampling_params``, ``lora_request`` (the adapter to compute with; None: the model alone), ``cache_salt``,
        ``kv_cache_retention_config`` (how long the cache keeps what is computed) and ``priority`` are one for all
        prompts or one for each. ``timeout`` (seconds) is a deadline for each request: what is there by then comes back
        with finish_reason "timeout".
        Wrong input raises ``RequestError`` before anything is started. If requests fail later, the others are finished
        first; the error then carries all outputs as ``error.outputs``.
        """
        single = _is_single(inputs)
        prompts = [inputs] if single else list(inputs)
        count = len(prompts)
        params = _each("sampling_params", sampling_params or SamplingParams(), SamplingParams, count)
        salts = _each("cache_salt", cache_salt, (str, type(None)), count)
        adapters = _adapters(lora_request, count)
        kept = _each("kv_cache_retention_config", kv_cache_retention_config, _RETENTION, count)
        options = [{**of, "kv_cache_retention_config": one} for of, one in zip(adapters, kept, strict=True)]
        priorities = _each("priority", priority, (int, float), count)
        front = self._engine.front
        prepared = [_prepare(front, prompt, one) for prompt, one in zip(prompts, params, strict=True)]
        starts = [
            partial(front.submit, text, ids, one, priority=rank, timeout=timeout, cache_salt=salt, media=media, **more)
            for (text, ids, media), one, salt, rank, more in zip(
                prepared, params, salts, priorities, options, strict=True
            )
        ]
        outputs = _finish(starts, use_tqdm and not single)
        return outputs[0] if single else outputs

    def generate_async(
        self,
        inputs: Prompt,
        sampling_params: SamplingParams | None = None,
        lora_request: LoRARequest | None = None,
        *,
        streaming: bool = False,
        cache_salt: str | None = None,
        kv_cache_retention_config: KvCacheRetentionConfig | None = None,
        priority: float = 0.5,
        timeout: float | None = None,
    ) -> RequestOutput:
        """Starts one request and returns at once.

        The output can be awaited, waited for (``result()``), or followed with ``for`` and ``async for``. With
        ``streaming`` unset the loops yield once, at the end.
        """
        params = sampling_params or SamplingParams()
        text, ids, media = _prepare(self._engine.front, inputs, params)
        return self._engine.front.submit(
            text,
            ids,
            params,
            streaming=streaming,
            priority=priority,
            timeout=timeout,
            cache_salt=cache_salt,
            media=media,
            lora_request=lora_request,
            kv_cache_retention_config=kv_cache_retention_config,
        )

    # Encoding.

    def encode(
        self,
        inputs: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        use_tqdm: bool = True,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
        *,
        cache_salt: str | Sequence[str | None] | None = None,
        priority: float | Sequence[float] = 0.5,
        timeout: float | None = None,
    ) -> EncodeOutput | list[EncodeOutput]:
        """What the model gives for each prompt, without generating: ``output.data`` is a float32 array.

        A prompt may also be two texts that the model reads together: ``{"prompt": ..., "text_pair": ...}``. Any decoder
        gives an embedding; a model with labels or rewards gives those (``effective_config["pooling"]`` says
        which). Arguments and errors are those of ``generate``.
        """
        single = _is_single(inputs)
        prompts: list[Any] = [inputs] if single else list(inputs)
        count = len(prompts)
        params = _each("pooling_params", pooling_params or PoolingParams(), PoolingParams, count)
        salts = _each("cache_salt", cache_salt, (str, type(None)), count)
        adapters = _adapters(lora_request, count)
        priorities = _each("priority", priority, (int, float), count)
        front = self._engine.front
        prepared = [_prepare_encode(front, prompt, one) for prompt, one in zip(prompts, params, strict=True)]
        starts = [
            partial(front.encode, *request, priority=rank, timeout=timeout, cache_salt=salt, **more)
            for request, salt, rank, more in zip(prepared, salts, priorities, adapters, strict=True)
        ]
        outputs = _finish(starts, use_tqdm and not single)
        return outputs[0] if single else outputs

    def encode_async(
        self,
        inputs: Prompt,
        pooling_params: PoolingParams | None = None,
        lora_request: LoRARequest | None = None,
        *,
        cache_salt: str | None = None,
        priority: float = 0.5,
        timeout: float | None = None,
    ) -> EncodeOutput:
        """Starts one ``encode`` and returns at once. The output can be awaited, or waited for (``result()``)."""
        front = self._engine.front
        request = _prepare_encode(front, inputs, pooling_params or PoolingParams())
        options: dict[str, Any] = {
            "priority": priority,
            "timeout": timeout,
            "cache_salt": cache_salt,
        }
        return front.encode(*request, lora_request=lora_request, **options)

    # Adapters.

    def load_lora(self, name: str, path: str) -> None:
        """Loads an adapter that stays until ``unload_lora``: requests name it with ``LoRARequest(name, 0)``, and need
        no path. Raises ``RequestError`` if it cannot be."""
        self._engine.backend.call("load_adapter", name, str(path)).result()

    def unload_lora(self, name: str) -> None:
        """No new request gets the adapter; those under way finish with it. Raises ``RequestError`` if there is none of
        that name."""
        self._engine.backend.call("unload_adapter", name).result()

    def list_loras(self) -> list[dict[str, Any]]:
        """Adapters that are loaded: name, id, path, and how many requests use each."""
        adapters: list[dict[str, Any]] = self._engine.backend.call("adapters").result()
        return adapters

    # Looking in.

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._engine.tokenizer

    @property
    def effective_config(self) -> dict[str, Any]:
        """Every setting as it really is, defaults resolved."""
        return self.args.model_dump(mode="json") | self._engine.effective

    @property
    def start_report(self) -> list[tuple[str, float]]:
        """(phase, seconds) of the start, in order."""
        return list(self._engine.report.phases)

    @property
    def memory_report(self) -> list[tuple[str, int]]:
        """(what, bytes) that the start planned and took."""
        return list(self._engine.report.memory)

    def get_stats(self, timeout: float | None = 2) -> list[dict[str, Any]]:
        """Statistics of the iterations since the last call, oldest first; the last entry is a snapshot of now.

        Keys are those of TensorRT-LLM; ``witnesses`` holds the counters since the start that show which features acted.
        """
        return self._engine.get_stats(timeout)

    def get_kv_cache_events(self, timeout: float | None = 2) -> list[dict[str, Any]]:
        """What has happened in the KV cache since the last call, oldest first: blocks ``created``, ``stored``,
        ``removed``, ``updated`` (docs/caching.md). It takes ``KvCacheConfig(event_buffer_max_size)``; ``RequestError``
        without. ``timeout``: seconds to wait for the engine, which answers between two steps."""
        events: list[dict[str, Any]] = self._engine.backend.call("kv_cache_events").result(timeout)
        return events

    async def get_kv_cache_events_async(self, timeout: float | None = 2) -> list[dict[str, Any]]:
        """As ``get_kv_cache_events``, in a coroutine."""
        answer = asyncio.wrap_future(self._engine.backend.call("kv_cache_events"))
        events: list[dict[str, Any]] = await asyncio.wait_for(answer, timeout)
        return events

    @property
    def health(self) -> EngineHealth:
        """Whether the engine can go on, and when its loop last turned."""
        return self._engine.health

    def check_integrity(self) -> None:
        """Raises ``IntegrityError`` if a block, lease or slot is out of balance."""
        self._engine.backend.call("check_integrity").result()

    # The end.

    def shutdown(self) -> None:
        """Cancels what runs, gives everything back. May be called twice."""
        self._engine.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()


def _is_single(inputs: Any) -> bool:
    if isinstance(inputs, (str, Mapping)):
        return True
    return len(inputs) > 0 and isinstance(inputs[0], Integral)


def _prompt(prompt: Any) -> str | Sequence[int]:
    """Text or token ids out of any form of prompt. Raises ``RequestError``."""
    if not isinstance(prompt, Mapping):
        if not isinstance(prompt, (str, Sequence)) and not hasattr(prompt, "__array__"):
            raise RequestError(f"a prompt is a text, token ids or a dict, not {type(prompt).__name__}", param="inputs")
        return prompt
    for key in prompt:
        if key not in _PROMPT_KEYS:
            raise RequestError(
                f"a prompt has no key {key!r}; it takes one of {_PROMPT_KEYS}.{did_you_mean(key, _PROMPT_KEYS)}",
                param=key,
            )
    if len(prompt) != 1:
        raise RequestError(f"give exactly one of {_PROMPT_KEYS}, not {sorted(prompt)}", param="inputs")
    return next(iter(prompt.values()))


def _prepare(front: Front, prompt: Any, params: SamplingParams) -> Any:
    """What ``front.submit`` takes for a prompt: (text, token ids, media)."""
    rest, media = _media_apart(prompt)
    return front.prepare(_prompt(rest), params, media)


def _media_apart(prompt: Any) -> tuple[Any, Mapping[str, Any]]:
    """The prompt without its media, and its media. Raises ``RequestError``."""
    if not isinstance(prompt, Mapping) or "multi_modal_data" not in prompt:
        return prompt, {}
    media = prompt["multi_modal_data"] or {}
    if not isinstance(media, Mapping):
        raise RequestError(
            f"multi_modal_data is a dict such as {{'image': [...]}}, not {type(media).__name__}",
            param="multi_modal_data",
        )
    return {key: value for key, value in prompt.items() if key != "multi_modal_data"}, media


def _prepare_encode(front: Front, prompt: Any, params: PoolingParams) -> Any:
    """What ``front.encode`` takes for a prompt, or for a pair of texts."""
    rest, media = _media_apart(prompt)
    if isinstance(rest, Mapping) and "text_pair" in rest:
        second = rest["text_pair"]
        if not isinstance(second, str):
            raise RequestError(f"text_pair is a text, not {type(second).__name__}", param="text_pair")
        first = _prompt({key: value for key, value in rest.items() if key != "text_pair"})
        return front.prepare_encode(first, params, media, second)
    return front.prepare_encode(_prompt(rest), params, media)


def _each(name: str, value: Any, kind: Any, count: int) -> list[Any]:
    """``value`` for each of ``count`` prompts: repeated if it is one ``kind``, else a list of that length."""
    if isinstance(value, kind):
        return [value] * count
    values = list(value)
    if len(values) != count:
        raise RequestError(
            f"{name} has {len(values)} entries for {count} prompts; give one, or one for each", param=name
        )
    return values


def _adapters(given: LoRARequest | Sequence[LoRARequest | None] | None, count: int) -> list[dict[str, Any]]:
    """The adapter of each of ``count`` prompts, as an option of the front's."""
    each = _each("lora_request", given, (LoRARequest, type(None)), count)
    return [{"lora_request": adapter} for adapter in each]


def _finish(starts: Sequence[Callable[[], Output]], show_bar: bool) -> list[Output]:
    """Starts all requests and waits for them. Raises the first error, with all outputs in it."""
    outputs: list[Output] = []
    try:
        # One by one: those that have started are cancelled if a later one cannot.
        for start in starts:
            outputs.append(start())  # noqa: PERF401
        errors = _wait(outputs, show_bar)
    except BaseException:
        for output in outputs:
            output.abort()
        raise
    if errors:
        errors[0].outputs = outputs  # type: ignore[attr-defined]
        raise errors[0]
    return outputs


def _wait(outputs: Sequence[RequestOutput], show_bar: bool) -> list[Exception]:
    """Waits for all; the errors of those that failed."""
    errors: list[Exception] = []
    tokens = 0
    with tqdm(total=len(outputs), desc="requests", disable=not show_bar, dynamic_ncols=True) as bar:
        for output in outputs:
            try:
                output.result()
            except Exception as error:  # noqa: BLE001  collected and raised by the caller
                errors.append(error)
            tokens += sum(one.length for one in output.outputs)
            bar.update()
            elapsed = bar.format_dict["elapsed"]
            bar.set_postfix_str(f"{tokens / elapsed:.1f} tokens/s" if elapsed else "")
    return errors
