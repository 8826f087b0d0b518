"""Encoder layers: every row of a sequence sees all rows of it, and nothing is kept."""

from __future__ import annotations

import torch

from headrace.ops.batch import Batch

from .base import BuildContext, Layer
from .linear import Linear
from .norm import LayerNorm


class EncoderAttention(Layer):
    """Projections with biases, attention of a sequence over itself, output projection.

    Args:
        name: path of the checkpoint's module (``...attention``); names below it are those of BERT.
    """

    def __init__(self, ctx: BuildContext, name: str, hidden_size: int, n_heads: int) -> None:
        self._n_heads, self._head_dim = n_heads, hidden_size // n_heads
        self._attend = ctx.ops.encoder_attention
        parts = tuple(f"{name}.self.{part}" for part in ("query", "key", "value"))
        self.qkv = Linear(ctx, parts, hidden_size, (hidden_size,) * 3, bias=True)
        self.out = Linear(ctx, (f"{name}.output.dense",), hidden_size, (hidden_size,), bias=True, parts=n_heads)

    def __call__(self, x: torch.Tensor, batch: Batch) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]. Every sequence of the batch must be there from its first token to its last."""
        q, k, v = self.qkv(x).view(-1, 3, self._n_heads, self._head_dim).unbind(1)
        return self.out(self._attend(q, k, v, batch.query_starts, scale=self._head_dim**-0.5).flatten(1))


class EncoderMLP(Layer):
    """down(gelu(up x)), with biases."""

    def __init__(self, ctx: BuildContext, name: str, hidden_size: int, inner_size: int) -> None:
        self._act = ctx.ops.gelu
        self.up = Linear(ctx, (f"{name}.intermediate.dense",), hidden_size, (inner_size,), bias=True)
        self.down = Linear(ctx, (f"{name}.output.dense",), inner_size, (hidden_size,), bias=True, parts=inner_size)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]."""
        return self.down(self._act(self.up(x)))


class EncoderBlock(Layer):
    """norm(x + attention x), then norm(x + mlp x): the norms stand after the sums (BERT, arXiv 1810.04805).

    Args:
        name: path of the checkpoint's layer (``...encoder.layer.0``).
    """

    def __init__(
        self, ctx: BuildContext, name: str, hidden_size: int, n_heads: int, inner_size: int, eps: float
    ) -> None:
        self._add = ctx.ops.add
        self.attention = EncoderAttention(ctx, f"{name}.attention", hidden_size, n_heads)
        self.attention_norm = LayerNorm(ctx, f"{name}.attention.output.LayerNorm", hidden_size, eps)
        self.mlp = EncoderMLP(ctx, name, hidden_size, inner_size)
        self.mlp_norm = LayerNorm(ctx, f"{name}.output.LayerNorm", hidden_size, eps)

    def __call__(self, x: torch.Tensor, batch: Batch) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]."""
        x = self.attention_norm(self._add(x, self.attention(x, batch)))
        return self.mlp_norm(self._add(x, self.mlp(x)))
