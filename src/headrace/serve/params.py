"""From the fields of a body to ``SamplingParams``."""

from __future__ import annotations

from typing import Any

from headrace.core.lora import LoRARequest
from headrace.core.sampling_params import SamplingParams

from .chat_protocol import ChatCompletionRequest
from .engine import Terms
from .protocol import BEAM_FIELDS, CompletionRequest, Generation

# Same name, same meaning.
_SAME = (
    *("top_k", "top_p", "top_p_decay", "top_p_reset_ids", "min_p", "repetition_penalty", "presence_penalty"),
    *("frequency_penalty", "no_repeat_ngram_size", "min_tokens"),
    *("ignore_eos", "include_stop_str_in_output", "skip_special_tokens", "spaces_between_special_tokens"),
    *("truncate_prompt_tokens", "stop_token_ids", "logprobs_mode"),
    *("logits_processor", "apply_batched_logits_processor"),
)


def completion_params(body: CompletionRequest) -> SamplingParams:
    """Raises ``RequestError``."""
    return _params(
        body,
        max_tokens=body.max_tokens,
        logprobs=body.logprobs,
        prompt_logprobs=_most(body.logprobs if body.echo else None, body.prompt_logprobs),
        detokenize=body.detokenize,
    )


def chat_params(body: ChatCompletionRequest) -> SamplingParams:
    """Raises ``RequestError``."""
    limits = (body.max_completion_tokens, body.max_tokens)
    return _params(
        body,
        max_tokens=next((limit for limit in limits if limit is not None), None),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
    )


def terms(body: Generation, timeout: float | None, adapter: LoRARequest | None) -> Terms:
    """``timeout``: seconds."""
    retention = body.kv_cache_retention_config
    return Terms(body.priority, body.cache_salt, timeout, adapter, None if retention is None else retention.config())


def _most(*wanted: int | None) -> int | None:
    """The largest of those that are asked for; the answer shows each its own share."""
    return max((one for one in wanted if one is not None), default=None)


def _params(body: Generation, **more: Any) -> SamplingParams:
    bias = {int(token): value for token, value in (body.logit_bias or {}).items()}
    return SamplingParams(
        n=body.n or 1,
        best_of=body.best_of,
        use_beam_search=bool(body.use_beam_search),
        **({name: getattr(body, name) for name in BEAM_FIELDS} if body.use_beam_search else {}),
        # OpenAI's default; the engine's own would be greedy.
        temperature=1.0 if body.temperature is None else body.temperature,
        # OpenAI's seeds are signed.
        seed=None if body.seed is None else body.seed % (1 << 64),
        stop=body.stop or None,
        guided_decoding=body.guided(),
        top_p_min=body.top_p_min or None,
        embedding_bias=bias or None,
        **{name: getattr(body, name) for name in _SAME},
        **more,
    )
