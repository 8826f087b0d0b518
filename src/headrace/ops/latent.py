"""The contract of latent attention (MLA, arXiv 2405.04434) in its absorbed form, and of products head by head."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from headrace.cache.specs import LatentKV

from .storage import Storage


class LatentAttention(Protocol):
    """Attention of many heads over one latent vector and one rotated key a position.

    A part of an attention backend, over the metadata that it plans. Always the absorbed form, for prompts too: heads
    meet the latent vectors themselves, never keys and values made from them, so that a row computes the same
    whichever step it comes in.
    """

    def bind(self, cache: torch.Tensor, spec: LatentKV) -> Any:
        """Takes a layer's cache [n_blocks, numbers of a block] (any block stride, a block's share dense) and returns
        what the other methods want for it. The memory stays the caller's. In int8 and float8_e4m3fn a latent vector
        and a rotated key have a scale each.

        Raises EngineError when the layout is another one.
        """
        ...

    def write(self, latent: torch.Tensor, k_rope: torch.Tensor, cache: Any, metadata: Any) -> None:
        """Puts latent vectors [T, rank] and rotated keys [T, rope_dim] to the places ``write_index`` of the group."""
        ...

    def attend(
        self, q_latent: torch.Tensor, q_rope: torch.Tensor, cache: Any, metadata: Any, *, scale: float
    ) -> torch.Tensor:
        """softmax(scale * (q_latent . latent + q_rope . k_rope)) times the latent vectors.

        Args:
            q_latent: [T, n_heads, rank], queries in the space of the latent vectors.
            q_rope: [T, n_heads, rope_dim], rotated.
            cache, metadata: as for ``write``. What this step writes, it writes before.

        Returns:
            [T, n_heads, rank] in the dtype of q_latent. A row sees what lies in the cache, in cache dtype, at the
            positions that the plan says, and nothing else, whatever lies in other places of a block.
        """
        ...


class PerHead(Protocol):
    """Products of heads with a weight of their own each."""

    def storage(self, n_heads: int) -> Storage:
        """For a parameter [n_heads * n_out, n_in]: the weights of all heads, one below another."""
        ...

    def apply(self, x: torch.Tensor, weight: Any) -> torch.Tensor:
        """x [T, n_heads, n_in] in the dtype of the weight, heads of a row dense -> [T, n_heads, n_out]: head h times
        weight h transposed, rounded as in ``LinearOps.apply``. A row's result depends on that row alone."""
        ...
