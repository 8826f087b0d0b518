"""Reference attention: gathers a sequence's blocks out of the paged cache, then plain matrix products in fp32.

The plan cuts the batch into pieces (a sequence's rows, or a stretch of them) and stacks pieces of equal row count and
like key count, so that any mix of decode rows, chunks and draft rows is a handful of dense products:

    tile   rows [P, R]  x  keys [P, L]      P pieces, R rows each, L = 32 * blocks
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from headrace.cache.specs import CacheSpec, SlidingKV
from headrace.core.plan import BLOCK_TOKENS
from headrace.ops.attention import check_layout
from headrace.ops.batch import Batch

MAX_TILE_AREA = 1 << 20
"""Rows times keys of a tile: times n_heads * 4 bytes is what its scores take."""


@dataclass(slots=True)
class PagedKV:
    """A layer's cache, seen as lines of ``unit`` values: what an index reaches in one gather for keys and values."""

    cache: torch.Tensor
    """[n_blocks, 2, n_kv_heads, 32, head_dim], where rows are written."""
    lines: torch.Tensor
    """[n, unit], from the layer's first value on; lines of other layers lie in between."""
    unit: int
    """Divides both the block stride and 32 * head_dim."""
    block_lines: int
    """Lines from a block to the next."""

    @property
    def n_kv_heads(self) -> int:
        return self.cache.shape[2]

    @property
    def head_dim(self) -> int:
        return self.cache.shape[4]


@dataclass(slots=True)
class Tile:
    """Pieces that are computed together. All index tensors are made once a step."""

    rows: torch.Tensor | None
    """[P * R] int64: rows of the batch; None when they are all rows in order."""
    n_rows: int
    """R."""
    blocks: torch.Tensor
    """[P, B] int64: block ids in order of position; a place past the end repeats the piece's last block."""
    hidden: torch.Tensor
    """[P, 1, 1, R, 32 * B] bool: True where the row must not see the key."""
    dead: torch.Tensor
    """int64: places in P * 32 * B that no row of the piece may see. Their values are set to zero, because a masked
    weight of zero times a stale Inf or NaN would not be zero."""
    _places: tuple[torch.Tensor, torch.Tensor] | None = None

    def places(self, kv: PagedKV) -> tuple[torch.Tensor, torch.Tensor]:
        """Lines of keys and values in the order [2, P, n_kv_heads, 32 * B, head_dim], and ``dead`` for values in the
        order [P, n_kv_heads, 32 * B]. Made for the first layer of a group: they are equal for all of them."""
        if self._places is None:
            device = self.blocks.device
            per_head = BLOCK_TOKENS * kv.head_dim // kv.unit
            heads = torch.arange(2 * kv.n_kv_heads, device=device).view(2, 1, kv.n_kv_heads, 1, 1)
            first = self.blocks[None, :, None, :, None] * kv.block_lines + heads * per_head
            lines = (first + torch.arange(per_head, device=device)).flatten()
            keys = self.hidden.shape[-1]
            piece, place = self.dead[:, None] // keys, self.dead[:, None] % keys
            head = torch.arange(kv.n_kv_heads, device=device)
            self._places = lines, ((piece * kv.n_kv_heads + head) * keys + place).flatten()
        return self._places


@dataclass(slots=True)
class Metadata:
    """One group's plan of a step."""

    write_block: torch.Tensor
    """[T] int64."""
    write_place: torch.Tensor
    """[T] int64: place in the block."""
    tiles: tuple[Tile, ...]


class _Piece(NamedTuple):
    """Neighbouring rows of a sequence, and the blocks that they see."""

    seq: int
    first_row: int
    n_rows: int
    end: int
    """Length of the sequence up to and including the last of these rows."""
    first_block: int

    @property
    def n_blocks(self) -> int:
        return -(-self.end // BLOCK_TOKENS) - self.first_block


class ReferenceAttention:
    """``AttentionBackend`` in torch, for any device."""

    def bind(self, kv_cache: torch.Tensor) -> PagedKV:
        check_layout(kv_cache)
        n_blocks, _, n_kv_heads, block, head_dim = kv_cache.shape
        unit = math.gcd(kv_cache.stride(0), block * head_dim)
        block_lines = kv_cache.stride(0) // unit
        n_lines = (n_blocks - 1) * block_lines + 2 * n_kv_heads * block * head_dim // unit
        return PagedKV(kv_cache, kv_cache.as_strided((n_lines, unit), (unit, 1)), unit, block_lines)

    def plan(self, batch: Batch, group: int, spec: CacheSpec) -> Metadata:
        window = spec.window if isinstance(spec, SlidingKV) else None
        where = batch.groups[group].write_index
        pieces: dict[tuple[int, int], list[_Piece]] = {}
        for piece in _pieces(batch, window):
            # Key counts are rounded up to a power of two, so that stacked pieces waste at most half.
            size = 1 << (piece.n_blocks - 1).bit_length()
            pieces.setdefault((piece.n_rows, size), []).append(piece)
        table = batch.groups[group].block_table
        tiles = [
            _tile(stack, n_rows, batch, table, window)
            for (n_rows, _), alike in pieces.items()
            for stack in _stacks(alike, n_rows)
        ]
        return Metadata(where // BLOCK_TOKENS, where % BLOCK_TOKENS, tuple(tiles))

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv_cache: PagedKV, metadata: Metadata, *, scale: float
    ) -> torch.Tensor:
        kv_cache.cache[metadata.write_block, :, :, metadata.write_place] = torch.stack((k, v), 1).to(
            kv_cache.cache.dtype
        )
        tiles = metadata.tiles
        if len(tiles) == 1 and tiles[0].rows is None:
            return _attend_tile(q, kv_cache, tiles[0], scale)
        out = torch.empty_like(q)
        for tile in tiles:
            assert tile.rows is not None
            out[tile.rows] = _attend_tile(q[tile.rows], kv_cache, tile, scale)
        return out


BACKEND = ReferenceAttention()


def _pieces(batch: Batch, window: int | None) -> Iterator[_Piece]:
    """Every row of the batch once. Long chunks are cut so that a piece stays below MAX_TILE_AREA."""
    starts, lengths = batch.query_starts.tolist(), batch.seq_lens.tolist()
    for seq, length in enumerate(lengths):
        row, stop = starts[seq], starts[seq + 1]
        step = max(16, MAX_TILE_AREA // length)
        while row < stop:
            n_rows = min(step, stop - row)
            end = length - (stop - row) + n_rows
            oldest = 0 if window is None else max(0, end - n_rows - window + 1)
            yield _Piece(seq, row, n_rows, end, oldest // BLOCK_TOKENS)
            row += n_rows


def _stacks(pieces: Sequence[_Piece], n_rows: int) -> Iterator[Sequence[_Piece]]:
    keys = max(piece.n_blocks for piece in pieces) * BLOCK_TOKENS
    size = max(1, MAX_TILE_AREA // (n_rows * keys))
    for start in range(0, len(pieces), size):
        yield pieces[start : start + size]


def _tile(pieces: Sequence[_Piece], n_rows: int, batch: Batch, table: torch.Tensor, window: int | None) -> Tile:
    device = table.device
    numbers = torch.tensor(pieces, dtype=torch.int64, device=device)
    seq, first_row, _, end, first_block = numbers.unbind(1)
    n_blocks = max(piece.n_blocks for piece in pieces)
    last_block = (end - 1) // BLOCK_TOKENS
    columns = first_block[:, None] + torch.arange(n_blocks, device=device)
    blocks = table[seq[:, None], columns.minimum(last_block[:, None])].to(torch.int64)

    within = torch.arange(n_rows, device=device)
    query = ((end - n_rows)[:, None] + within)[:, :, None]
    key = (first_block[:, None] * BLOCK_TOKENS + torch.arange(n_blocks * BLOCK_TOKENS, device=device))[:, None, :]
    hidden = key > query
    if window is not None:
        hidden |= key <= query - window
    in_order = len(pieces) * n_rows == batch.n_rows
    rows = None if in_order else (first_row[:, None] + within).flatten()
    return Tile(rows, n_rows, blocks, hidden[:, None, None], hidden.all(1).flatten().nonzero().squeeze(1))


def _attend_tile(q: torch.Tensor, kv: PagedKV, tile: Tile, scale: float) -> torch.Tensor:
    """[P * R, n_heads, d] -> the same shape and dtype."""
    n_pieces, n_rows, keys = tile.hidden.shape[0], tile.n_rows, tile.hidden.shape[-1]
    n_heads, head_dim, n_kv_heads = q.shape[1], q.shape[2], kv.n_kv_heads
    shared = n_heads // n_kv_heads
    lines, dead = tile.places(kv)
    k, v = kv.lines.index_select(0, lines).float().view(2, n_pieces, n_kv_heads, keys, head_dim).unbind(0)
    v.view(-1, head_dim).index_fill_(0, dead, 0.0)

    # The query heads of a KV head are further rows of the same product.
    x = q.view(n_pieces, n_rows, n_kv_heads, shared, head_dim).permute(0, 2, 3, 1, 4)
    x = (x.float() * scale).reshape(n_pieces, n_kv_heads, shared * n_rows, head_dim)
    scores = torch.matmul(x, k.transpose(-1, -2)).view(n_pieces, n_kv_heads, shared, n_rows, keys)
    weights = scores.masked_fill_(tile.hidden, -torch.inf).softmax(-1)
    out = torch.matmul(weights.view(n_pieces, n_kv_heads, shared * n_rows, keys), v)
    out = out.view(n_pieces, n_kv_heads, shared, n_rows, head_dim).permute(0, 3, 1, 2, 4)
    return out.reshape(n_pieces * n_rows, n_heads, head_dim).to(q.dtype)
