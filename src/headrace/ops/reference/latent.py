"""Reference latent attention over the tiles of ``reference.attention``, and products head by head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from headrace.cache.specs import LatentKV
from headrace.core.plan import BLOCK_TOKENS
from headrace.ops.attention import check_blocks
from headrace.ops.storage import PLAIN, Storage

from .kv_numbers import MOST, rounded, scales_of

if TYPE_CHECKING:
    from .attention import Metadata, Tile


@dataclass(frozen=True, slots=True)
class LatentCache:
    """A layer's cache: a row for each token, its latent vector before its rotated key."""

    tokens: torch.Tensor
    """[n_blocks, 32, rank + rope_dim]; numbers of one byte as int8, whatever they stand for."""
    scales: torch.Tensor | None
    """[n_blocks, 2, 32] fp32, of latent vectors and of rotated keys; None: numbers are taken as they are."""
    dtype: torch.dtype
    """What the numbers stand for."""
    rank: int


class ReferenceLatentAttention:
    """``LatentAttention`` in torch, for any device."""

    def bind(self, cache: torch.Tensor, spec: LatentKV) -> LatentCache:
        check_blocks(cache, spec, spec.itemsize)
        width, scales = spec.rank + spec.rope_dim, None
        if cache.dtype in MOST:
            scales = scales_of(cache, 2 * BLOCK_TOKENS).unflatten(1, (2, BLOCK_TOKENS))
        numbers = cache if scales is None else cache.view(torch.int8)
        tokens = numbers[:, : BLOCK_TOKENS * width].unflatten(1, (BLOCK_TOKENS, width))
        return LatentCache(tokens, scales, cache.dtype, spec.rank)

    def write(self, latent: torch.Tensor, k_rope: torch.Tensor, cache: LatentCache, metadata: Metadata) -> None:
        if cache.scales is None:
            rows = torch.cat((latent, k_rope), 1).to(cache.tokens.dtype)
        else:
            parts = [rounded(x, cache.dtype) for x in (latent, k_rope)]
            rows = torch.cat([numbers.view(torch.int8) for numbers, _ in parts], 1)
            scales = torch.stack([scale for _, scale in parts], 1)
            cache.scales[metadata.write_block, :, metadata.write_place] = scales
        cache.tokens[metadata.write_block, metadata.write_place] = rows

    def attend(
        self, q_latent: torch.Tensor, q_rope: torch.Tensor, cache: LatentCache, metadata: Metadata, *, scale: float
    ) -> torch.Tensor:
        q = torch.cat((q_latent, q_rope), 2)
        out = q_latent.new_zeros(q_latent.shape)
        for tile in metadata.tiles:
            rows = slice(None) if tile.rows is None else tile.rows
            out[rows] = _attend_tile(q[rows], cache, tile, scale)
        return out


LATENT = ReferenceLatentAttention()


def _attend_tile(q: torch.Tensor, cache: LatentCache, tile: Tile, scale: float) -> torch.Tensor:
    """[P * R, n_heads, rank + rope_dim] -> [P * R, n_heads, rank]."""
    n_pieces, keys = tile.hidden.shape[0], tile.hidden.shape[-1]
    n_heads, width = q.shape[1:]
    tokens = cache.tokens[tile.blocks].view(cache.dtype).float().view(n_pieces, keys, width)
    if cache.scales is not None:
        scales = cache.scales[tile.blocks].transpose(2, 3).reshape(n_pieces, keys, 2)
        tokens[..., : cache.rank] *= scales[..., :1]
        tokens[..., cache.rank :] *= scales[..., 1:]
    # A masked weight of zero times what a recycled block may hold is not always zero.
    tokens.view(-1, width).index_fill_(0, tile.dead, 0.0)
    x = (q.float() * scale).view(n_pieces, tile.n_rows * n_heads, width)
    scores = torch.matmul(x, tokens.transpose(1, 2)).view(n_pieces, tile.n_rows, n_heads, keys)
    hidden = tile.hidden.view(n_pieces, tile.n_rows, 1, keys)
    weights = scores.masked_fill_(hidden, -torch.inf).softmax(-1)
    # A row that sees none of the keys.
    weights = weights.masked_fill_(hidden.all(-1, keepdim=True), 0.0).flatten(1, 2)
    return torch.matmul(weights, tokens[..., : cache.rank]).view(-1, n_heads, cache.rank).to(q.dtype)


class ReferencePerHead:
    """``PerHead`` over plain tensors."""

    def storage(self, n_heads: int) -> Storage:
        return PLAIN

    def apply(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        n_heads = x.shape[1]
        return torch.einsum("thk,hnk->thn", x, weight.unflatten(0, (n_heads, -1))).contiguous()


PER_HEAD = ReferencePerHead()
