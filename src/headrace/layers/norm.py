"""Norms of rows and of heads."""

from __future__ import annotations

import torch

from .base import BuildContext, Layer, Parameter, Source, stacked


class RMSNorm(Layer):
    """Root mean square norm over the last dimension. ``plus_one``: the factor is 1 + weight, in fp32 (Gemma)."""

    def __init__(self, ctx: BuildContext, name: str, size: int, eps: float, *, plus_one: bool = False) -> None:
        self._norm = ctx.ops.rms_norm_plus_one if plus_one else ctx.ops.rms_norm
        self._eps = eps
        self.weight = Parameter(ctx, (size,), stacked((f"{name}.weight",), (size,)), zero_centred=plus_one)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[..., size] -> the same."""
        return self._norm(x, self.weight.data, self._eps)


class LayerNorm(Layer):
    """Layer norm with a bias over the last dimension."""

    def __init__(self, ctx: BuildContext, name: str, size: int, eps: float) -> None:
        self._norm = ctx.ops.layer_norm
        self._eps = eps
        self.weight = Parameter(ctx, (size,), stacked((f"{name}.weight",), (size,)))
        self.bias = Parameter(ctx, (size,), stacked((f"{name}.bias",), (size,)))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[..., size] -> the same."""
        return self._norm(x, self.weight.data, self.bias.data, self._eps)


class LayerNormPlusOne(Layer):
    """Layer norm with a bias over the last dimension; the factor is 1 + weight (Nemotron)."""

    def __init__(self, ctx: BuildContext, name: str, size: int, eps: float) -> None:
        self._norm = ctx.ops.layer_norm_plus_one
        self._eps = eps
        self.weight = Parameter(ctx, (size,), stacked((f"{name}.weight",), (size,)), zero_centred=True)
        self.bias = Parameter(ctx, (size,), stacked((f"{name}.bias",), (size,)))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[..., size] -> the same."""
        return self._norm(x, self.weight.data, self.bias.data, self._eps)


class HeadNorm(Layer):
    """Root mean square norm of each query and key head, queries and keys each with a weight of their own.

    The two weights are spread over the heads once, when they are loaded, so that all heads are one call.
    """

    def __init__(
        self,
        ctx: BuildContext,
        name: str,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        eps: float,
        *,
        plus_one: bool = False,
    ) -> None:
        self._norm = ctx.ops.rms_norm_plus_one if plus_one else ctx.ops.rms_norm
        self._eps = eps
        both = n_heads + n_kv_heads
        sources = (
            Source(f"{name}.q_norm.weight", (head_dim,), 0, n_heads),
            Source(f"{name}.k_norm.weight", (head_dim,), n_heads, both),
        )
        self.weight = Parameter(ctx, (both, head_dim), sources, zero_centred=plus_one)

    def __call__(self, heads: torch.Tensor) -> torch.Tensor:
        """[T, n_heads + n_kv_heads, head_dim], queries first -> the same."""
        return self._norm(heads, self.weight.data, self._eps)


class NoHeadNorm(Layer):
    """For models that leave query and key heads as they are."""

    def __call__(self, heads: torch.Tensor) -> torch.Tensor:
        return heads
