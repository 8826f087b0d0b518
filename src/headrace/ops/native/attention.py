"""Paged attention on the native core. The layout of a block is described in ``native/kernels/attention_args.h``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from headrace.cache.specs import CacheSpec, ChunkedKV, FullKV, KVSpec, LatentKV, SlidingKV, blocks_of
from headrace.core.errors import EngineError
from headrace.core.plan import BLOCK_TOKENS
from headrace.ops.attention import check_layout, check_ranges, check_starts, value_dim
from headrace.ops.batch import Batch, GroupBatch

from .core import CACHE_DTYPES, DTYPES, native
from .latent import LATENT
from .rows import as_rows
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
    key_dim: int
    value_dim: int


class NativeAttention:
    """``AttentionBackend``: a row's result depends on the keys that it sees and their positions alone, to the bit.

    Products run in the dtype of the cache, with sums in float32: queries and weights are rounded to it. In int8 they
    are whole numbers of 16 bits with a scale, so that sums are exact; in float8_e4m3fn everything is multiplied as
    bfloat16.
    """

    latent = LATENT

    def bind(self, kv_cache: torch.Tensor, spec: KVSpec) -> NativeKV:
        check_layout(kv_cache, spec)
        if kv_cache.dtype not in CACHE_DTYPES or (kv_cache.dtype == torch.bfloat16 and spec.head_dim % 2):
            raise EngineError(f"a cache of {kv_cache.dtype} with heads of {spec.head_dim} has no native layout")
        return NativeKV(
            kv_cache, kv_cache.data_ptr(), CACHE_DTYPES[kv_cache.dtype], kv_cache.stride(0), spec.n_kv_heads,
            spec.head_dim, value_dim(spec),
        )  # fmt: skip

    def plan(self, batch: Batch, group: int, spec: CacheSpec) -> Any:
        part = batch.groups[group]
        plan = _core.AttentionPlan() if part.metadata is None else part.metadata
        table, where = part.block_table.contiguous(), part.write_index.contiguous()
        ranges = None if part.key_ranges is None else check_ranges(part, batch.n_rows)
        window = (spec.window or 0) if isinstance(spec, SlidingKV | ChunkedKV | LatentKV) else 0
        chunk = spec.chunk if isinstance(spec, ChunkedKV) else 0
        n_kv_heads = spec.n_kv_heads if isinstance(spec, KVSpec) else 1
        plan.fill(
            batch.query_starts.data_ptr(), batch.seq_lens.data_ptr(), batch.n_seqs, table.data_ptr(), table.shape[1],
            where.data_ptr(), len(where), window, chunk, n_kv_heads, 0 if ranges is None else ranges.data_ptr(),
        )  # fmt: skip
        return plan

    def write(self, k: torch.Tensor, v: torch.Tensor, kv_cache: NativeKV, metadata: Any) -> None:
        k, v, kv = _dense_heads(k), _dense_heads(v), kv_cache
        _core.write_kv(
            metadata, k.data_ptr(), v.data_ptr(), kv.address, DTYPES[k.dtype], kv.dtype, k.shape[0], k.stride(0),
            v.stride(0), kv.block_stride, kv.n_kv_heads, kv.key_dim, kv.value_dim,
        )  # fmt: skip

    def attend(
        self,
        q: torch.Tensor,
        kv_cache: NativeKV,
        metadata: Any,
        *,
        scale: float,
        soft_cap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        n_rows, n_heads, _ = q.shape
        q, kv = _dense_heads(q), kv_cache
        if sinks is not None and (sinks.shape != (n_heads,) or sinks.dtype != q.dtype):
            raise EngineError(f"sinks must be [{n_heads}] {q.dtype}, got {tuple(sinks.shape)} {sinks.dtype}")
        y = empty((n_rows, n_heads, kv.value_dim), q.dtype)
        _core.attend(
            metadata, q.data_ptr(), kv.address, y.data_ptr(), 0 if sinks is None else sinks.data_ptr(),
            DTYPES[q.dtype], kv.dtype, n_rows, q.stride(0), kv.block_stride, n_heads, kv.n_kv_heads, kv.key_dim,
            kv.value_dim, scale, soft_cap or 0.0,
        )  # fmt: skip
        return y

    def add_where_seen(self, x: torch.Tensor, y: torch.Tensor, factor: float, metadata: Any) -> torch.Tensor:
        x, y = as_rows(x), as_rows(y)
        out = empty(tuple(x.shape), x.dtype)
        _core.add_where_seen(
            metadata, x.data_ptr(), y.data_ptr(), out.data_ptr(), DTYPES[x.dtype], x.shape[0], x.shape[1], x.stride(0),
            y.stride(0), factor,
        )  # fmt: skip
        return out


def _dense_heads(x: torch.Tensor) -> torch.Tensor:
    """[T, heads, head_dim] whose heads lie one behind another; rows may be any distance apart."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()


BACKEND = NativeAttention()


def encoder_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    starts: torch.Tensor,
    *,
    scale: float,
    ranges: torch.Tensor | None = None,
) -> torch.Tensor:
    """``EncoderAttention``: paged attention over a cache that lasts as long as the call."""
    check_starts(starts, q.shape[0])
    counts = starts.diff()
    widths = [blocks_of(count) for count in counts.tolist()]
    first_block = torch.tensor([0, *widths]).cumsum(0)
    row = torch.arange(q.shape[0])
    seq = torch.repeat_interleave(torch.arange(len(widths)), counts)
    where = first_block[seq] * BLOCK_TOKENS + row - starts[seq]
    table = first_block[:-1, None].to(torch.int32) + torch.arange(max(widths, default=0), dtype=torch.int32)
    if ranges is None:
        ranges = torch.stack((torch.zeros_like(row), counts[seq]), 1)
    batch = Batch(row, row, starts.contiguous(), counts, (GroupBatch(table, where, ranges),))

    spec = FullKV(k.shape[1], k.shape[2], k.dtype.itemsize, v.shape[2])
    numbers = spec.bytes_per_block // k.dtype.itemsize
    kv_cache = BACKEND.bind(torch.empty(int(first_block[-1]), numbers, dtype=k.dtype), spec)
    metadata = BACKEND.plan(batch, 0, spec)
    BACKEND.write(k, v, kv_cache, metadata)
    return BACKEND.attend(q, kv_cache, metadata, scale=scale)
