"""Self-attention over the paged cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from headrace.cache.specs import ChunkedKV, FullKV, KVSpec, SlidingKV
from headrace.core.errors import EngineError
from headrace.ops.batch import Batch

from .base import BuildContext, CachedLayer, Layer, Parameter, stacked
from .linear import NO_BIAS, Linear, NoBias
from .query_keys import QueryKeys


class PagedAttention(CachedLayer):
    """Attention, and the cache that it wants.

    Args:
        window: keys that a row sees, itself included; None: all.
        chunk: rows see keys of their own chunk of so many positions only; None: no chunks. Not with a window.
        scale: factor of the scores.
        soft_cap: cap of the scores; None: none.
    """

    def __init__(
        self,
        ctx: BuildContext,
        n_kv_heads: int,
        head_dim: int,
        *,
        scale: float,
        window: int | None = None,
        chunk: int | None = None,
        v_head_dim: int | None = None,
        soft_cap: float | None = None,
    ) -> None:
        if window is not None and chunk is not None:
            raise EngineError(f"a layer with a window ({window}) and chunks ({chunk}): it has one or the other")
        args = (n_kv_heads, head_dim, ctx.cache_dtype.itemsize)
        wide = None if v_head_dim == head_dim else v_head_dim
        self.cache_spec: KVSpec = FullKV(*args, wide)
        if window is not None:
            self.cache_spec = SlidingKV(*args, window, wide)
        elif chunk is not None:
            self.cache_spec = ChunkedKV(*args, chunk, wide)
        self._backend = ctx.ops.attention
        self._dtype = ctx.cache_dtype
        self._scale = scale
        self._soft_cap = soft_cap
        self._group = -1
        self._cache: Any = None

    def bind_cache(self, group: int, cache: torch.Tensor) -> None:
        """``cache``: [n_blocks, numbers of 32 tokens] in the cache dtype, a view of the arena.

        Raises EngineError when it is of another kind.
        """
        if cache.dtype != self._dtype:
            raise EngineError(f"a cache in {cache.dtype} does not fit {self.cache_spec} in {self._dtype}")
        self._group = group
        self._cache = self._backend.bind(cache, self.cache_spec)

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, batch: Batch, sinks: torch.Tensor | None = None
    ) -> torch.Tensor:
        """q [T, n_heads, head_dim], k [T, n_kv_heads, head_dim], v [T, n_kv_heads, v_head_dim], sinks [n_heads] or None
        -> [T, n_heads, v_head_dim]."""
        metadata = batch.groups[self._group].metadata
        self._backend.write(k, v, self._cache, metadata)
        return self._backend.attend(q, self._cache, metadata, scale=self._scale, soft_cap=self._soft_cap, sinks=sinks)


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Sizes of a self-attention block."""

    hidden_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    v_head_dim: int | None = None
    """Width of a value head where it differs from the key's."""


class SelfAttention(Layer):
    """Projections, head norms, rotation, attention, output projection.

    Args:
        name: path of the checkpoint's module (``...self_attn``).
        head_norm: norm of query and key heads before the rotation; ``NoHeadNorm`` for none.
        rotated: whether queries and keys are turned by their position; False: this layer knows no positions (NoPE).
        neighbours: the checkpoint's heads turn x[2 i] with x[2 i + 1]; here it is x[i] with x[i + head_dim / 2].
        query_keys: what becomes of queries and keys after that; None: they stay as they are.
        bias, out_bias: whether q, k, v and the output projection have a bias.
        fused: the checkpoint has q, k and v as one tensor, ``qkv_proj``, in this order.
        sinks: the checkpoint has a sink for each head, ``sinks``.
        gate: ``q_proj`` gives each query head a gate of its width behind it, whose sigmoid scales what the head brings
            back.
        qkv: makes queries, keys and values in place of the projections, out of whatever the layer is called with.
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
        chunk: int | None = None,
        soft_cap: float | None = None,
        rotated: bool = True,
        neighbours: bool = False,
        query_keys: QueryKeys | None = None,
        bias: bool = False,
        out_bias: bool = False,
        fused: bool = False,
        sinks: bool = False,
        gate: bool = False,
        qkv: Layer | None = None,
    ) -> None:
        self._n_heads, self._n_kv_heads, self._head_dim = shape.n_heads, shape.n_kv_heads, shape.head_dim
        self._v_head_dim = shape.v_head_dim or shape.head_dim
        q_size, k_size = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
        v_size = shape.n_kv_heads * self._v_head_dim
        names = ("qkv_proj",) if fused else ("q_proj", "k_proj", "v_proj")
        self._gate = Gate(ctx, q_size) if gate else NoGate()
        sizes = (q_size + k_size + v_size,) if fused else (q_size + self._gate.size, k_size, v_size)
        halves = (_halves(q_size, shape.head_dim), _halves(k_size, shape.head_dim), tuple(range(v_size)))
        in_front = (_gates_in_front(q_size, shape.head_dim), tuple(range(k_size)), tuple(range(v_size)))
        self.qkv: Any = qkv or Linear(
            ctx, tuple(f"{name}.{part}" for part in names), shape.hidden_size, sizes, bias=bias,
            orders=in_front if gate else halves if neighbours else None,
        )  # fmt: skip
        self.head_norm = head_norm
        self._rope = ctx.ops.rope if rotated else _as_they_are
        self._query_keys = query_keys or QueryKeys(shape.n_heads)
        n_heads, sink = shape.n_heads, stacked((f"{name}.sinks",), (shape.n_heads,))
        self.sinks: Parameter | NoBias = Parameter(ctx, (n_heads,), sink) if sinks else NO_BIAS
        self.attention = PagedAttention(
            ctx, shape.n_kv_heads, shape.head_dim, scale=scale, window=window, chunk=chunk,
            v_head_dim=self._v_head_dim, soft_cap=soft_cap,
        )  # fmt: skip
        out_name, mixed_size = (f"{name}.o_proj",), shape.n_heads * self._v_head_dim
        self.out = Linear(ctx, out_name, mixed_size, (shape.hidden_size,), bias=out_bias, parts=shape.n_heads)

    def __call__(self, x: torch.Tensor, angles: Any, batch: Batch) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]; ``angles`` come from the rope of this layer."""
        turning = self._n_heads + self._n_kv_heads
        heads = self.qkv(x)
        qk = _heads(heads, self._gate.size, turning, self._head_dim)
        v = _heads(heads, self._gate.size + turning * self._head_dim, self._n_kv_heads, self._v_head_dim)
        q, k = self._query_keys(self._rope(self.head_norm(qk), angles), batch)
        return self.out(self._gate(self.attention(q, k, v, batch, self.sinks.data).flatten(1), heads))


class NoGate:
    """What heads bring back stays as it is."""

    size = 0

    def __call__(self, mixed: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
        return mixed


class Gate:
    """``size`` columns in front of the queries are gates (Qwen3-Next)."""

    def __init__(self, ctx: BuildContext, size: int) -> None:
        self.size = size
        self._scale = ctx.ops.sigmoid_mul

    def __call__(self, mixed: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
        """[T, size] and the projections -> [T, size]."""
        return self._scale(mixed, heads[:, : self.size])


def _gates_in_front(q_size: int, head_dim: int) -> tuple[int, ...]:
    """Where rows of [query | gate] of each head go so that all gates come first."""
    heads = [divmod(row, 2 * head_dim) for row in range(2 * q_size)]
    return tuple(head * head_dim + (q_size + at if at < head_dim else at - head_dim) for head, at in heads)


def _halves(n_rows: int, head_dim: int) -> tuple[int, ...]:
    """Where the rows of heads go so that even ones come before odd ones in each."""
    half = head_dim // 2
    return tuple(row // head_dim * head_dim + row % 2 * half + row % head_dim // 2 for row in range(n_rows))


def _heads(x: torch.Tensor, first: int, n_heads: int, head_dim: int) -> torch.Tensor:
    """[T, n_heads, head_dim] from column ``first`` on. Rows keep their distance even where there is just one of them:
    a step recorded with one row is replayed with more."""
    return x.as_strided((x.shape[0], n_heads, head_dim), (x.stride(0), head_dim, 1), x.storage_offset() + first)


def _as_they_are(heads: torch.Tensor, angles: Any) -> torch.Tensor:
    return heads
