"""The contract of an attention backend: plan once a step; write keys and attend once a layer."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from headrace.cache.specs import CacheSpec, KVSpec
from headrace.core.errors import EngineError
from headrace.core.plan import BLOCK_TOKENS

from .batch import Batch, GroupBatch
from .latent import LatentAttention


def value_dim(spec: KVSpec) -> int:
    """Width of a value head."""
    return spec.head_dim if spec.v_head_dim is None else spec.v_head_dim


def check_layout(kv_cache: torch.Tensor, spec: KVSpec) -> None:
    """Raises EngineError unless the cache is [n_blocks, 32 tokens of ``spec``] with dense blocks."""
    check_blocks(kv_cache, spec, spec.itemsize)


def check_blocks(cache: torch.Tensor, spec: CacheSpec, itemsize: int) -> None:
    """Raises EngineError unless the cache is [n_blocks, a layer's share of a block] in numbers of ``itemsize`` bytes,
    dense within a block."""
    numbers = spec.bytes_per_block // itemsize
    if cache.dim() != 2 or cache.shape[1] != numbers or cache.stride(1) != 1 or cache.dtype.itemsize != itemsize:
        raise EngineError(
            f"a cache of {tuple(cache.shape)}, strides {cache.stride()}, {cache.dtype}, does not fit {spec}:"
            f" it must be [n_blocks, {numbers}] of numbers of {itemsize} bytes with dense blocks"
        )


def check_ranges(part: GroupBatch, n_rows: int) -> torch.Tensor:
    """``part.key_ranges``, dense. Raises EngineError for another shape or dtype, or keys that the table has not."""
    ranges = part.key_ranges
    assert ranges is not None
    if ranges.shape != (n_rows, 2) or ranges.dtype != torch.int64:
        raise EngineError(f"key_ranges must be [{n_rows}, 2] int64, got {tuple(ranges.shape)} {ranges.dtype}")
    keys = part.block_table.shape[1] * BLOCK_TOKENS
    seen = ranges[ranges[:, 0] < ranges[:, 1]]
    if len(seen) and (int(seen.min()) < 0 or int(seen.max()) > keys):
        raise EngineError(f"key_ranges name keys {int(seen.min())} .. {int(seen.max()) - 1}, the table has {keys}")
    return ranges.contiguous()


class AttentionBackend(Protocol):
    """Attention over a paged cache. Stateless: everything it needs comes in with the call."""

    @property
    def latent(self) -> LatentAttention:
        """Attention over latent vectors, by the plans of this backend."""
        ...

    def bind(self, kv_cache: torch.Tensor, spec: KVSpec) -> Any:
        """Takes a layer's cache and returns what ``write`` and ``attend`` want for it. The memory stays the caller's.

        Args:
            kv_cache: [n_blocks, numbers of a block]: room for keys of all KV heads, then values of all KV heads, and,
                in int8 and float8_e4m3fn, their scales; any block stride, a block's share dense. How the numbers lie
                in there is the backend's affair.
            spec: heads and their widths; keys and values may differ in width.

        Raises EngineError when the layout is another one.
        """
        ...

    def plan(self, batch: Batch, group: int, spec: CacheSpec) -> Any:
        """The metadata of one cache group for one step. Pure; whoever gathers the batch calls it once a group and
        stores the result in ``batch.groups[group].metadata``.

        Which keys a row sees is decided here: ``key_ranges`` of the group where they are given. Else the row at
        position p sees keys ``spec.reads_from(p) <= key <= p`` of its sequence: all, a window, or its chunk. Every
        row must then lie inside its sequence's length.
        """
        ...

    def write(self, k: torch.Tensor, v: torch.Tensor, kv_cache: Any, metadata: Any) -> None:
        """Writes keys and values to the places ``write_index`` of the group. In a cache of int8 or float8_e4m3fn each
        key and each value of a head is rounded by itself: ``reference.kv_numbers`` says how.

        Args:
            k, v: [len(write_index), n_kv_heads, width of a key or value head].
            kv_cache: from ``bind``.
            metadata: from ``plan``, for the group of this layer.
        """
        ...

    def attend(
        self,
        q: torch.Tensor,
        kv_cache: Any,
        metadata: Any,
        *,
        scale: float,
        soft_cap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Each row's weighted values of the keys that it sees.

        Args:
            q: [T, n_heads, head_dim]; n_heads is a multiple of n_kv_heads, neighbours share a KV head.
            kv_cache, metadata: as for ``write``. What this step writes, it writes before.
            scale: factor of the scores.
            soft_cap: c; scores s = scale * q.k become c * tanh(s / c) (Gemma 2).
            sinks: [n_heads] in the dtype of q; a head's weights are exp(s) / (sum of exp(s) + exp(sink)) (GPT-OSS).

        Returns:
            [T, n_heads, v_head_dim] in the dtype of q. A row sees its keys as they lie in the cache, in cache dtype,
            and nothing else: whatever lies in other places of a block, Inf and NaN included, has no effect. A row that
            sees no key gives zeros.
        """
        ...

    def add_where_seen(self, x: torch.Tensor, y: torch.Tensor, factor: float, metadata: Any) -> torch.Tensor:
        """x + factor * y in rows that see a key, x to the bit in those that see none; x and y [T, n]."""
        ...


class EncoderAttention(Protocol):
    """Attention without a cache: the rows of a sequence see all rows of it, those after them too."""

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        starts: torch.Tensor,
        *,
        scale: float,
        ranges: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """q [T, n_heads, head_dim], k [T, n_kv_heads, head_dim], v [T, n_kv_heads, v_head_dim], starts [S + 1] int64 on
        the host: sequence s is rows starts[s] : starts[s + 1], T of them in all -> [T, n_heads, v_head_dim] in the
        dtype of q. n_heads is a multiple of n_kv_heads, neighbours share a KV head. ``ranges`` [T, 2] int64 on the
        host: a row sees rows [first, end) of its sequence, at least one; None: all of them.

        Raises EngineError when ``starts`` does not begin with 0, falls, or does not end with T.
        """
        ...


def check_starts(starts: torch.Tensor, n_rows: int) -> None:
    """Raises EngineError as ``EncoderAttention`` says."""
    if int(starts[0]) != 0 or int(starts[-1]) != n_rows or bool((starts.diff() < 0).any()):
        raise EngineError(f"starts must rise from 0 to the {n_rows} rows, got {starts.tolist()}")
