"""Self-attention over the paged cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from headrace.cache.specs import CacheSpec, FullKV, SlidingKV
from headrace.core.errors import EngineError
from headrace.ops.batch import Batch

from .base import BuildContext, Layer
from .linear import Linear


class PagedAttention(Layer):
    """Causal attention, and the cache that it wants. It reads its group's metadata; a model never sees that.

    Args:
        window: keys that a row sees, itself included; None: all.
        scale: factor of the scores.
    """

    def __init__(
        self, ctx: BuildContext, n_kv_heads: int, head_dim: int, *, scale: float, window: int | None = None
    ) -> None:
        itemsize = ctx.cache_dtype.itemsize
        self.cache_spec: CacheSpec = (
            FullKV(n_kv_heads=n_kv_heads, head_dim=head_dim, itemsize=itemsize)
            if window is None
            else SlidingKV(n_kv_heads=n_kv_heads, head_dim=head_dim, itemsize=itemsize, window=window)
        )
        self._backend = ctx.ops.attention
        self._dtype = ctx.cache_dtype
        self._scale = scale
        self._group = -1
        self._cache: Any = None

    def bind_cache(self, group: int, cache: torch.Tensor) -> None:
        """``cache``: [n_blocks, 2, n_kv_heads, 32, head_dim] in the cache dtype, a view of the arena.

        Raises EngineError when it is of another kind.
        """
        spec = self.cache_spec
        if cache.dtype != self._dtype or (cache.shape[2], cache.shape[4]) != (spec.n_kv_heads, spec.head_dim):
            raise EngineError(f"a cache of {tuple(cache.shape)} {cache.dtype} does not fit {spec} in {self._dtype}")
        self._group = group
        self._cache = self._backend.bind(cache)

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, batch: Batch) -> torch.Tensor:
        """q [T, n_heads, head_dim], k and v [T, n_kv_heads, head_dim] -> [T, n_heads, head_dim]."""
        metadata = batch.groups[self._group].metadata
        return self._backend.attend(q, k, v, self._cache, metadata, scale=self._scale)


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Sizes of a self-attention block."""

    hidden_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int


class SelfAttention(Layer):
    """Projections, head norms, rotation, attention, output projection.

    Args:
        name: path of the checkpoint's module (``...self_attn``).
        head_norm: norm of query and key heads before the rotation; ``NoHeadNorm`` for none.
        rotated: whether queries and keys are turned by their position; False: this layer knows no positions (NoPE).
        bias, out_bias: whether q, k, v and the output projection have a bias.
        fused: the checkpoint has q, k and v as one tensor, ``qkv_proj``, in this order.
    """

    def __init__(
        self,
        ctx: BuildContext,
        name: str,
        shape: AttentionShape,
        head_norm: Layer,
        *,
        scale: float,
        window: int | None = None,
        rotated: bool = True,
        bias: bool = False,
        out_bias: bool = False,
        fused: bool = False,
    ) -> None:
        self._n_heads, self._n_kv_heads, self._head_dim = shape.n_heads, shape.n_kv_heads, shape.head_dim
        q_size, kv_size = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
        names = ("qkv_proj",) if fused else ("q_proj", "k_proj", "v_proj")
        sizes = (q_size + 2 * kv_size,) if fused else (q_size, kv_size, kv_size)
        self.qkv = Linear(ctx, tuple(f"{name}.{part}" for part in names), shape.hidden_size, sizes, bias=bias)
        self.head_norm = head_norm
        self._rope = ctx.ops.rope if rotated else _as_they_are
        self.attention = PagedAttention(ctx, shape.n_kv_heads, shape.head_dim, scale=scale, window=window)
        out_name = (f"{name}.o_proj",)
        self.out = Linear(ctx, out_name, q_size, (shape.hidden_size,), bias=out_bias, parts=shape.n_heads)

    def __call__(self, x: torch.Tensor, angles: Any, batch: Batch) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]; ``angles`` come from the rope of this layer."""
        turning = self._n_heads + self._n_kv_heads
        heads = self.qkv(x).view(-1, turning + self._n_kv_heads, self._head_dim)
        qk = self._rope(self.head_norm(heads[:, :turning]), angles)
        mixed = self.attention(qk[:, : self._n_heads], qk[:, self._n_heads :], heads[:, turning:], batch)
        return self.out(mixed.flatten(1))


def _as_they_are(heads: torch.Tensor, angles: Any) -> torch.Tensor:
    return heads
