"""The contract of an attention backend: plan once a step, attend once a layer."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from headrace.cache.specs import CacheSpec
from headrace.core.errors import EngineError
from headrace.core.plan import BLOCK_TOKENS

from .batch import Batch


def check_layout(kv_cache: torch.Tensor) -> None:
    """Raises EngineError unless the cache is [n_blocks, 2, n_kv_heads, 32, head_dim] with dense blocks."""
    _, two, n_kv_heads, block, head_dim = kv_cache.shape
    dense = (n_kv_heads * block * head_dim, block * head_dim, head_dim, 1)
    if (two, block) != (2, BLOCK_TOKENS) or kv_cache.stride()[1:] != dense:
        raise EngineError(
            f"a layer's cache must be [n_blocks, 2, n_kv_heads, {BLOCK_TOKENS}, head_dim] with dense blocks, got"
            f" shape {tuple(kv_cache.shape)}, strides {kv_cache.stride()}"
        )


class AttentionBackend(Protocol):
    """Causal attention over a paged cache. Stateless: everything it needs comes in with the call."""

    def bind(self, kv_cache: torch.Tensor) -> Any:
        """Takes a layer's cache ``[n_blocks, 2, n_kv_heads, 32, head_dim]`` (0 keys, 1 values; any block stride, a
        block's share contiguous) and returns what ``attend`` wants for it. The memory stays the caller's.

        Raises EngineError when the layout is another one.
        """
        ...

    def plan(self, batch: Batch, group: int, spec: CacheSpec) -> Any:
        """The metadata of one cache group for one step. Pure; whoever gathers the batch calls it once a group and
        stores the result in ``batch.groups[group].metadata``. Every row must lie inside its sequence's length."""
        ...

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv_cache: Any, metadata: Any, *, scale: float
    ) -> torch.Tensor:
        """Writes the rows' keys and values into the cache, then attends over the cache.

        Args:
            q: [T, n_heads, head_dim]; n_heads is a multiple of n_kv_heads, neighbours share a KV head.
            k, v: [T, n_kv_heads, head_dim].
            kv_cache: from ``bind``.
            metadata: from ``plan``, for the group of this layer; it carries the window.
            scale: factor of the scores.

        Returns:
            [T, n_heads, head_dim] in the dtype of q. A row at position p sees the keys of its own sequence at
            positions ``p - window < key <= p`` (no lower bound without a window), read back from the cache in cache
            dtype, and nothing else: whatever lies in other places of a block, Inf and NaN included, has no effect.
        """
        ...
