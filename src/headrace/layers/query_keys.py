"""What becomes of queries and keys between rotation and attention."""

from __future__ import annotations

import torch

from headrace.ops.batch import Batch

from .base import BuildContext, Layer

Pair = tuple[torch.Tensor, torch.Tensor]


class QueryKeys(Layer):
    """They stay as they are."""

    def __init__(self, n_heads: int) -> None:
        self._n_heads = n_heads

    def __call__(self, heads: torch.Tensor, batch: Batch) -> Pair:
        """[T, n_heads + n_kv_heads, head_dim], queries first -> queries and keys apart."""
        return heads[:, : self._n_heads], heads[:, self._n_heads :]


class NormedQueryKeys(QueryKeys):
    """Every head is divided by its root mean square, without a weight (Llama 4 Scout)."""

    def __init__(self, ctx: BuildContext, n_heads: int, head_dim: int, eps: float) -> None:
        super().__init__(n_heads)
        self._norm, self._eps = ctx.ops.rms_norm, eps
        self._ones = torch.ones(head_dim, dtype=ctx.dtype, device=ctx.device)

    def __call__(self, heads: torch.Tensor, batch: Batch) -> Pair:
        return super().__call__(self._norm(heads, self._ones, self._eps), batch)


class FarQueryKeys(QueryKeys):
    """Queries grow with the logarithm of their position, so that attention over many keys stays as sharp as over few
    (Llama 4, in layers without rotation; arXiv 2501.19399)."""

    def __init__(self, ctx: BuildContext, n_heads: int, floor_scale: float, attn_scale: float) -> None:
        super().__init__(n_heads)
        self._scale = ctx.ops.position_scale
        self._floor_scale, self._attn_scale = floor_scale, attn_scale

    def __call__(self, heads: torch.Tensor, batch: Batch) -> Pair:
        queries, keys = super().__call__(heads, batch)
        return self._scale(queries, batch.positions, self._floor_scale, self._attn_scale), keys
