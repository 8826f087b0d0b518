"""Heads over pooled rows: labels and rewards."""

from __future__ import annotations

import torch

from .base import BuildContext, Layer, Parameter, stacked


class Scores(Layer):
    """y = x Wᵀ + b in fp32: one number for each label.

    Args:
        name: path of the checkpoint's module.
    """

    def __init__(self, ctx: BuildContext, name: str, n_in: int, n_out: int, *, bias: bool = False) -> None:
        self._ops = ctx.ops.linear
        self.weight = Parameter(ctx, (n_out, n_in), stacked((f"{name}.weight",), (n_out,), n_in), storage=self._ops)
        self.bias = Parameter(ctx, (n_out,), stacked((f"{name}.bias",), (n_out,))) if bias else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[R, n_in] -> [R, n_out] fp32."""
        bias = None if self.bias is None else self.bias.data
        return self._ops.apply(x, self.weight.data, bias, dtype=torch.float32)


class TwoLayerScores(Layer):
    """A hidden layer of the same width with max(x, 0), then ``Scores``; both with biases (reward models of Qwen)."""

    def __init__(self, ctx: BuildContext, name: str, hidden_size: int, n_out: int) -> None:
        self.inner = Scores(ctx, f"{name}.0", hidden_size, hidden_size, bias=True)
        self.outer = Scores(ctx, f"{name}.2", hidden_size, n_out, bias=True)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[R, hidden] -> [R, n_out] fp32."""
        return self.outer(torch.relu(self.inner(x)).to(x.dtype))


class PooledScores(Layer):
    """tanh(dense x), then ``Scores``; both with biases (BERT).

    Args:
        dense, scores: paths of the checkpoint's modules.
    """

    def __init__(self, ctx: BuildContext, dense: str, scores: str, hidden_size: int, n_out: int) -> None:
        self._soft_cap = ctx.ops.soft_cap
        self.dense = Scores(ctx, dense, hidden_size, hidden_size, bias=True)
        self.scores = Scores(ctx, scores, hidden_size, n_out, bias=True)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[R, hidden] -> [R, n_out] fp32."""
        return self.scores(self._soft_cap(self.dense(x), 1.0).to(x.dtype))
