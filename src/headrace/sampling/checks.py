"""What samplers refuse, in the same words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor

    from .contract import RowMasks


def check_logits(logits: Tensor, n_rows: int, vocab_size: int) -> None:
    """``ValueError`` unless ``logits`` are float32 [n_rows, vocab_size]."""
    if str(logits.dtype) != "torch.float32" or logits.shape != (n_rows, vocab_size):
        raise ValueError(
            f"logits are {logits.dtype} {list(logits.shape)}; expected torch.float32 {[n_rows, vocab_size]}"
        )


def check_masks(masks: RowMasks, vocab_size: int) -> None:
    """``ValueError`` unless the masks are uint32 of the right width, and each is there."""
    width = -(-vocab_size // 32)
    if masks.words.dtype != np.uint32 or masks.words.shape[1:] != (width,):
        raise ValueError(f"masks are {masks.words.dtype} {list(masks.words.shape)}; expected uint32 [M, {width}]")
    if len(masks.index) and not -1 <= masks.index.min() <= masks.index.max() < len(masks.words):
        raise ValueError(f"rows have masks up to {masks.index.max()}, and there are {len(masks.words)}")


def check_prompt_tokens(next_tokens: np.ndarray, vocab_size: int) -> None:
    """``RequestError`` if one of ``next_tokens`` has no logit."""
    if len(next_tokens) and not 0 <= next_tokens.min() <= next_tokens.max() < vocab_size:
        raise RequestError(
            f"prompt_logprobs: the prompt holds ids beyond the {vocab_size} logits", param="prompt_logprobs"
        )


def check_prompt_rows(tops: list[float]) -> None:
    """``RequestError`` for the first row that cannot be calculated, by the largest logits of the rows."""
    problem = next(filter(None, map(problem_of, tops)), None)
    if problem:
        raise RequestError(f"prompt_logprobs: {problem}", param="prompt_logprobs")


def problem_of(top: float) -> str | None:
    """What is wrong with a row whose largest logit (or first NaN) is ``top``."""
    if top != top:
        return "the logits hold NaN: the model's own calculation went wrong"
    if top == np.inf:
        return "a logit is +inf: the model's own calculation, or a penalty, went out of range"
    if top == -np.inf:
        return "every token is forbidden: bans, biases, min_tokens and guided decoding together leave none"
    return None
