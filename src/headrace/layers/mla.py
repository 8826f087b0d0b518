"""Multi-head latent attention (DeepSeek, arXiv 2405.04434): the cache holds what keys and values are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from headrace.cache.specs import LatentKV
from headrace.core.errors import EngineError
from headrace.ops.batch import Batch
from headrace.weights.checkpoint import Checkpoint

from .base import BuildContext, CachedLayer, Layer, Parameter, Source
from .linear import Linear
from .norm import RMSNorm

_LATENT_EPS = 1e-6
"""Of the norms of both latent vectors: not a field of the configuration."""


@dataclass(frozen=True, slots=True)
class LatentShape:
    """Sizes of latent attention. A head's query and key have ``nope_dim`` values and ``rope_dim`` rotated ones."""

    hidden_size: int
    n_heads: int
    q_rank: int | None
    """Of the latent vector that queries are made of; None: they are made of x."""
    kv_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int

    @property
    def q_dim(self) -> int:
        return self.nope_dim + self.rope_dim


class LatentSelfAttention(Layer):
    """Projections, rotation, attention in the space of the latent vectors, output projection.

    A key's unrotated part is W_uk c and a value W_uv c, c the latent vector of the position. W_uk moves to the query
    and W_uv behind the sum over positions: heads attend over c itself. Rounded to the model's dtype are c, the rotated
    key, the query before and after W_uk, the sum of latent vectors, and the head's output.

    Args:
        name: path of the checkpoint's module (``...self_attn``).
        scale: factor of the scores.
        bias: whether projections from x, and the one to the output, have a bias.
        paired: rotated values are pairs of neighbours in the checkpoint (``rope_interleave``). They are put into halves
            when they are read, in queries and keys alike, which leaves every score as it is.
    """

    def __init__(
        self,
        ctx: BuildContext,
        name: str,
        shape: LatentShape,
        *,
        scale: float,
        bias: bool = False,
        paired: bool = True,
    ) -> None:
        self._shape = s = shape
        rope_order = _halves_of_pairs(s.rope_dim) if paired else tuple(range(s.rope_dim))
        self.queries = _Queries(ctx, name, s, rope_order, bias=bias)
        kv_order = (*range(s.kv_rank), *(s.kv_rank + i for i in rope_order))
        kv_name = f"{name}.kv_a_proj_with_mqa"
        self.down = Linear(ctx, (kv_name,), s.hidden_size, (s.kv_rank + s.rope_dim,), bias=bias, orders=(kv_order,))
        self.norm = RMSNorm(ctx, f"{name}.kv_a_layernorm", s.kv_rank, _LATENT_EPS)
        self.to_latent = _UpProjection(ctx, f"{name}.kv_b_proj.weight", s, of_values=False)
        self.from_latent = _UpProjection(ctx, f"{name}.kv_b_proj.weight", s, of_values=True)
        self.attention = PagedLatentAttention(ctx, s.kv_rank, s.rope_dim, scale=scale)
        width = s.n_heads * s.v_dim
        self.out = Linear(ctx, (f"{name}.o_proj",), width, (s.hidden_size,), bias=bias, parts=s.n_heads)
        self._rope = ctx.ops.rope

    def __call__(self, x: torch.Tensor, angles: Any, batch: Batch) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]; ``angles`` come from a rope of ``rope_dim`` values."""
        s = self._shape
        q, kv = self.queries(x), self.down(x)
        border = s.n_heads * s.nope_dim
        q_latent = self.to_latent(q[:, :border].unflatten(1, (s.n_heads, s.nope_dim)))
        q_rope = self._rope(q[:, border:].unflatten(1, (s.n_heads, s.rope_dim)), angles)
        latent = self.norm(kv[:, : s.kv_rank])
        k_rope = self._rope(kv[:, s.kv_rank :].unflatten(1, (1, s.rope_dim)), angles)
        mixed = self.attention(q_latent, q_rope, latent, k_rope.flatten(1), batch)
        return self.out(self.from_latent(mixed).flatten(1))


class PagedLatentAttention(CachedLayer):
    """Attention over latent vectors, and the cache that it wants."""

    def __init__(self, ctx: BuildContext, rank: int, rope_dim: int, *, scale: float) -> None:
        self.cache_spec = LatentKV(rank, rope_dim, ctx.cache_dtype.itemsize)
        self._backend = ctx.ops.attention.latent
        self._dtype = ctx.cache_dtype
        self._scale = scale
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
        self, q_latent: torch.Tensor, q_rope: torch.Tensor, latent: torch.Tensor, k_rope: torch.Tensor, batch: Batch
    ) -> torch.Tensor:
        """As ``ops.latent.LatentAttention.attend``, after the rows' own vectors are written."""
        metadata = batch.groups[self._group].metadata
        self._backend.write(latent, k_rope, self._cache, metadata)
        return self._backend.attend(q_latent, q_rope, self._cache, metadata, scale=self._scale)


class _Queries(Layer):
    """[T, hidden] -> [T, n_heads * q_dim]: first the unrotated parts of all heads, then the parts to be rotated."""

    def __init__(
        self, ctx: BuildContext, name: str, s: LatentShape, rope_order: tuple[int, ...], *, bias: bool
    ) -> None:
        border = s.n_heads * s.nope_dim
        order = tuple(
            row
            for head in range(s.n_heads)
            for row in (
                *range(head * s.nope_dim, (head + 1) * s.nope_dim),
                *(border + head * s.rope_dim + i for i in rope_order),
            )
        )
        size = (s.n_heads * s.q_dim,)
        if s.q_rank is None:
            self.steps: tuple[Layer, ...] = (Linear(ctx, (f"{name}.q_proj",), s.hidden_size, size, orders=(order,)),)
            return
        self.steps = (
            Linear(ctx, (f"{name}.q_a_proj",), s.hidden_size, (s.q_rank,), bias=bias),
            RMSNorm(ctx, f"{name}.q_a_layernorm", s.q_rank, _LATENT_EPS),
            Linear(ctx, (f"{name}.q_b_proj",), s.q_rank, size, orders=(order,)),
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        for step in self.steps:
            x = step(x)
        return x


class _UpProjection(Layer):
    """One half of ``kv_b_proj`` [n_heads * (nope_dim + v_dim), kv_rank], whose rows are a head's key and value in turn.

    Of keys: [T, n_heads, nope_dim] -> [T, n_heads, kv_rank], the transpose. Of values: [T, n_heads, kv_rank] ->
    [T, n_heads, v_dim].
    """

    def __init__(self, ctx: BuildContext, tensor: str, s: LatentShape, *, of_values: bool) -> None:
        self._ops = ctx.ops.per_head
        self.weight = _HalfOfKvB(ctx, tensor, s, of_values=of_values)

    def __call__(self, heads: torch.Tensor) -> torch.Tensor:
        return self._ops.apply(heads, self.weight.data)


class _HalfOfKvB(Parameter):
    """The rows of keys or of values of the tensor, head by head; those of keys transposed."""

    __slots__ = ("_heads", "_of_values", "_split")

    def __init__(self, ctx: BuildContext, tensor: str, s: LatentShape, *, of_values: bool) -> None:
        self._heads, self._split, self._of_values = s.n_heads, s.nope_dim, of_values
        shape = (s.n_heads * s.v_dim, s.kv_rank) if of_values else (s.n_heads * s.kv_rank, s.nope_dim)
        whole = Source(tensor, (s.n_heads * (s.nope_dim + s.v_dim), s.kv_rank), 0, shape[0])
        super().__init__(ctx, shape, (whole,), storage=ctx.ops.per_head.storage(s.n_heads))

    def fill(self, source: Source, checkpoint: Checkpoint) -> None:
        """Reads the tensor whole: a transpose needs all of a head, and it is the smallest matrix of the layer."""
        heads = checkpoint.tensor(source.name).unflatten(0, (self._heads, -1))
        rows = heads[:, self._split :] if self._of_values else heads[:, : self._split].transpose(1, 2)
        self.storage.fill(self.data, 0, rows.flatten(0, 1))


def _halves_of_pairs(dim: int) -> tuple[int, ...]:
    """Where each of ``dim`` values goes: first the first of all pairs, then the second."""
    return tuple(i // 2 + dim // 2 * (i % 2) for i in range(dim))
