"""How many tokens a request took."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace.engine.results import RequestOutput


def usage_of(outputs: Sequence[RequestOutput]) -> dict[str, Any]:
    """``usage`` of the answer to one or several prompts. A prompt counts once, whatever n is."""
    prompt = sum(len(output.prompt_token_ids) for output in outputs)
    made = sum(one.length for output in outputs for one in output.outputs)
    cached = sum(output.cached_tokens for output in outputs)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt + made,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
