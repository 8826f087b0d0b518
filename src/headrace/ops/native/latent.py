"""Latent attention and products head by head on the native core. Layout: ``native/kernels/latent_args.h``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from headrace.cache.specs import LatentKV
from headrace.core.errors import EngineError
from headrace.ops.attention import check_blocks

from .core import CACHE_DTYPES, DTYPES, native
from .linear import LINEAR
from .moe import PackedExperts, PackedStorage
from .rows import as_rows
from .workspace import empty

_core = native()


@dataclass(frozen=True, slots=True)
class NativeLatentCache:
    """A layer's cache as the core wants it."""

    cache: torch.Tensor
    """Keeps the memory."""
    address: int
    dtype: int
    block_stride: int
    rank: int
    rope_dim: int


class NativeLatentAttention:
    """``LatentAttention``: a row's result depends on what it sees and its position alone, to the bit.

    Products, segments and blocks of the softmax are those of ``NativeAttention``.
    """

    def bind(self, cache: torch.Tensor, spec: LatentKV) -> NativeLatentCache:
        check_blocks(cache, spec, spec.itemsize)
        if cache.dtype not in CACHE_DTYPES or (cache.dtype == torch.bfloat16 and (spec.rank + spec.rope_dim) % 2):
            raise EngineError(f"a cache of {cache.dtype} for {spec} has no native layout")
        return NativeLatentCache(
            cache, cache.data_ptr(), CACHE_DTYPES[cache.dtype], cache.stride(0), spec.rank, spec.rope_dim
        )  # fmt: skip

    def write(self, latent: torch.Tensor, k_rope: torch.Tensor, cache: NativeLatentCache, metadata: Any) -> None:
        latent, k_rope = as_rows(latent), as_rows(k_rope)
        _core.write_latent(
            metadata, latent.data_ptr(), k_rope.data_ptr(), cache.address, DTYPES[latent.dtype], cache.dtype,
            latent.shape[0], latent.stride(0), k_rope.stride(0), cache.block_stride, cache.rank, cache.rope_dim,
        )  # fmt: skip

    def attend(
        self,
        q_latent: torch.Tensor,
        q_rope: torch.Tensor,
        cache: NativeLatentCache,
        metadata: Any,
        *,
        scale: float,
    ) -> torch.Tensor:
        q_latent, q_rope = as_rows(q_latent), as_rows(q_rope)
        n_rows, n_heads, _ = q_latent.shape
        y = empty((n_rows, n_heads, cache.rank), q_latent.dtype)
        _core.attend_latent(
            metadata, q_latent.data_ptr(), q_rope.data_ptr(), cache.address, y.data_ptr(), DTYPES[q_latent.dtype],
            cache.dtype, n_rows, q_latent.stride(0), q_rope.stride(0), cache.block_stride, n_heads, cache.rank,
            cache.rope_dim, scale,
        )  # fmt: skip
        return y


LATENT = NativeLatentAttention()


class NativePerHead:
    """``PerHead`` over packed weights, float32 and bfloat16."""

    def storage(self, n_heads: int) -> PackedStorage:
        return PackedStorage(n_heads, LINEAR)

    def apply(self, x: torch.Tensor, weight: PackedExperts) -> torch.Tensor:
        one, n_heads = weight.experts[0], len(weight.experts)
        if x.dtype != one.dtype or x.shape[1:] != (n_heads, one.n_in):
            raise EngineError(
                f"x {tuple(x.shape)} {x.dtype} does not fit {n_heads} weights of [{one.n_out}, {one.n_in}] {one.dtype}"
            )
        x = as_rows(x)
        y = empty((x.shape[0], n_heads, one.n_out), x.dtype)
        _core.per_head(
            x.data_ptr(), weight.memory.data_ptr(), y.data_ptr(), DTYPES[x.dtype], x.shape[0], x.stride(0), n_heads,
            one.n_in, one.n_out,
        )  # fmt: skip
        return y


PER_HEAD = NativePerHead()
