"""Residual blocks: where the norms stand around attention and MLP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from headrace.ops.batch import Batch

from .base import BuildContext, Layer
from .norm import RMSNorm


class PreNormBlock(Layer):
    """x + attention(norm x), then x + mlp(norm x).

    Args:
        name: path of the checkpoint's layer (``model.layers.0``).
        norm: which norm, built from (ctx, name, size, eps).
    """

    def __init__(
        self,
        ctx: BuildContext,
        name: str,
        hidden_size: int,
        eps: float,
        attention: Layer,
        mlp: Layer,
        *,
        norm: Callable[[BuildContext, str, int, float], Layer] = RMSNorm,
    ) -> None:
        self.attention_norm = norm(ctx, f"{name}.input_layernorm", hidden_size, eps)
        self.attention = attention
        self.mlp_norm = norm(ctx, f"{name}.post_attention_layernorm", hidden_size, eps)
        self.mlp = mlp
        self._add = ctx.ops.add

    def __call__(self, x: torch.Tensor, angles: Any, batch: Batch) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]."""
        x = self._add(x, self.attention(self.attention_norm(x), angles, batch))
        return self._add(x, self.mlp(self.mlp_norm(x)))


class PostNormBlock(Layer):
    """x + norm(attention x), then x + norm(mlp x): what a part adds is normed, what it reads is not (EXAONE 4)."""

    def __init__(
        self, ctx: BuildContext, name: str, hidden_size: int, eps: float, attention: Layer, mlp: Layer
    ) -> None:
        self.attention = attention
        self.after_attention = RMSNorm(ctx, f"{name}.post_attention_layernorm", hidden_size, eps)
        self.mlp = mlp
        self.after_mlp = RMSNorm(ctx, f"{name}.post_feedforward_layernorm", hidden_size, eps)
        self._add = ctx.ops.add

    def __call__(self, x: torch.Tensor, angles: Any, batch: Batch) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]."""
        x = self._add(x, self.after_attention(self.attention(x, angles, batch)))
        return self._add(x, self.after_mlp(self.mlp(x)))


class SandwichBlock(Layer):
    """x + norm(attention(norm x)), then x + norm(mlp(norm x)): four norms of the 1 + w kind (Gemma 3)."""

    def __init__(
        self, ctx: BuildContext, name: str, hidden_size: int, eps: float, attention: Layer, mlp: Layer
    ) -> None:
        def norm(which: str) -> RMSNorm:
            return RMSNorm(ctx, f"{name}.{which}", hidden_size, eps, plus_one=True)

        self.before_attention = norm("input_layernorm")
        self.attention = attention
        self.after_attention = norm("post_attention_layernorm")
        self.before_mlp = norm("pre_feedforward_layernorm")
        self.mlp = mlp
        self.after_mlp = norm("post_feedforward_layernorm")
        self._add = ctx.ops.add

    def __call__(self, x: torch.Tensor, angles: Any, batch: Batch) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]."""
        x = self._add(x, self.after_attention(self.attention(self.before_attention(x), angles, batch)))
        return self._add(x, self.after_mlp(self.mlp(self.before_mlp(x))))


class Branch(Layer):
    """x + part(norm x), for a part that looks at a row alone."""

    def __init__(self, ctx: BuildContext, norm_name: str, hidden_size: int, eps: float, part: Layer) -> None:
        self.norm = RMSNorm(ctx, norm_name, hidden_size, eps)
        self.part = part
        self._add = ctx.ops.add

    def __call__(self, x: torch.Tensor, angles: Any, batch: Batch) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]."""
        return self._add(x, self.part(self.norm(x)))


class AttentionBranch(Branch):
    """x + attention(norm x)."""

    def __call__(self, x: torch.Tensor, angles: Any, batch: Batch) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]."""
        return self._add(x, self.part(self.norm(x), angles, batch))


class BranchedBlock(Layer):
    """Branches in order; none leaves x as it is."""

    def __init__(self, branches: tuple[Layer, ...]) -> None:
        self.branches = branches

    def __call__(self, x: torch.Tensor, angles: Any, batch: Batch) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]."""
        for branch in self.branches:
            x = branch(x, angles, batch)
        return x
