"""Paged attention on the native core. The layout of a block is described in ``native/kernels/attention_args.h``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from headrace.cache.specs import CacheSpec, SlidingKV
from headrace.core.errors import EngineError
from headrace.ops.attention import check_layout
from headrace.ops.batch import Batch

from .core import DTYPES, native
from .workspace import empty

_core = native()


@dataclass(frozen=True, slots=True)
class NativeKV:
    """A layer's cache as the core wants it."""

    cache: torch.Tensor
    """Keeps the memory."""
    address: int
    dtype: int
    block_stride: int
    n_kv_heads: int
    head_dim: int


class NativeAttention:
    """``AttentionBackend``: a row's result depends on its position and its own cache alone, to the bit.

    Products run in the dtype of the cache, with sums in float32: queries and weights are rounded to it.
    """

    def bind(self, kv_cache: torch.Tensor) -> NativeKV:
        check_layout(kv_cache)
        _, _, n_kv_heads, _, head_dim = kv_cache.shape
        if kv_cache.dtype not in DTYPES or (kv_cache.dtype == torch.bfloat16 and head_dim % 2):
            raise EngineError(f"a cache of {kv_cache.dtype} with heads of {head_dim} has no native layout")
        return NativeKV(kv_cache, kv_cache.data_ptr(), DTYPES[kv_cache.dtype], kv_cache.stride(0), n_kv_heads, head_dim)

    def plan(self, batch: Batch, group: int, spec: CacheSpec) -> Any:
        part = batch.groups[group]
        plan = _core.AttentionPlan() if part.metadata is None else part.metadata
        table, where = part.block_table.contiguous(), part.write_index.contiguous()
        plan.fill(
            batch.query_starts.data_ptr(), batch.seq_lens.data_ptr(), batch.n_seqs, table.data_ptr(), table.shape[1],
            where.data_ptr(), spec.window if isinstance(spec, SlidingKV) else 0,
        )  # fmt: skip
        return plan

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv_cache: NativeKV, metadata: Any, *, scale: float
    ) -> torch.Tensor:
        n_rows, n_heads, head_dim = q.shape
        q, k, v = _dense_heads(q), _dense_heads(k), _dense_heads(v)
        y = empty((n_rows, n_heads, head_dim), q.dtype)
        rows = DTYPES[q.dtype]
        kv = kv_cache
        _core.write_kv(
            metadata, k.data_ptr(), v.data_ptr(), kv.address, rows, kv.dtype, n_rows, k.stride(0), v.stride(0),
            kv.block_stride, kv.n_kv_heads, head_dim,
        )  # fmt: skip
        _core.attend(
            metadata, q.data_ptr(), kv.address, y.data_ptr(), rows, kv.dtype, n_rows, q.stride(0), kv.block_stride,
            n_heads, kv.n_kv_heads, head_dim, scale,
        )  # fmt: skip
        return y


def _dense_heads(x: torch.Tensor) -> torch.Tensor:
    """[T, heads, head_dim] whose heads lie one behind another; rows may be any distance apart."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()


BACKEND = NativeAttention()
