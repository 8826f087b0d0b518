"""From token ids to vectors, and from vectors to logits."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .base import BuildContext, Layer, Weight, stacked


class Embedding(Layer):
    """One row of a [vocab_size, hidden] table for each token id."""

    def __init__(self, ctx: BuildContext, name: str, vocab_size: int, hidden_size: int) -> None:
        sources = stacked((f"{name}.weight",), (vocab_size,), hidden_size)
        self.weight = Weight(ctx, (vocab_size, hidden_size), sources, is_table=True)
        self._ops = self.weight.ops

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """[T] -> [T, hidden]."""
        return self._ops.embed(ids, self.weight.data)


class LMHead(Layer):
    """Logits over the vocabulary, in fp32.

    Args:
        weight: the embedding's table for a tied head; None: ``name``.weight of its own.
        cap: logits become cap * tanh(logits / cap); None: they stay.
    """

    def __init__(
        self,
        ctx: BuildContext,
        name: str,
        vocab_size: int,
        hidden_size: int,
        *,
        tied: Embedding | None = None,
        cap: float | None = None,
    ) -> None:
        own = stacked((f"{name}.weight",), (vocab_size,), hidden_size)
        shape = (vocab_size, hidden_size)
        self.weight = tied.weight if tied is not None else Weight(ctx, shape, own, is_table=True)
        self._ops = self.weight.ops
        self._finish = _capped(ctx, cap) if cap is not None else _as_they_are

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """[R, hidden] -> [R, vocab_size] fp32."""
        return self._finish(self._ops.apply(hidden, self.weight.data, None, dtype=torch.float32))


def _capped(ctx: BuildContext, cap: float) -> Callable[[torch.Tensor], torch.Tensor]:
    soft_cap = ctx.ops.soft_cap
    return lambda logits: soft_cap(logits, cap)


def _as_they_are(logits: torch.Tensor) -> torch.Tensor:
    return logits
