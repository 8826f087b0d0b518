"""Reference attention: gathers a sequence's blocks out of the paged cache, then plain matrix products in fp32.

The plan cuts the batch into pieces (a sequence's rows, or a stretch of them) and stacks pieces of equal row count and
like key count, so that any mix of decode rows, chunks and draft rows is a handful of dense products:

    tile   rows [P, R]  x  keys [P, L]      P pieces, R rows each, L = 32 * blocks
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from headrace.cache.specs import CacheSpec, KVSpec, blocks_of
from headrace.core.plan import BLOCK_TOKENS
from headrace.ops.attention import check_layout, check_ranges, check_starts, value_dim
from headrace.ops.batch import Batch

from .kv_numbers import MOST, rounded, scales_of
from .latent import LATENT

MAX_TILE_AREA = 1 << 20
"""Rows times keys of a tile: times n_heads * 4 bytes is what its scores take."""


@dataclass(slots=True)
class PagedKV:
    """A layer's cache, seen as lines of ``unit`` values: what an index reaches in one gather for keys and values."""

    keys: torch.Tensor
    """[n_blocks, n_kv_heads, 32, head_dim], where rows are written; numbers of one byte as int8, whatever they are."""
    values: torch.Tensor
    """[n_blocks, n_kv_heads, 32, v_head_dim]."""
    scales: torch.Tensor | None
    """[n_blocks, 2, n_kv_heads, 32] fp32, of keys and of values; None: numbers are taken as they are."""
    dtype: torch.dtype
    """What the numbers stand for."""
    lines: torch.Tensor
    """[n, unit], from the layer's first value on; lines of other layers lie in between."""
    unit: int
    """Divides the block stride and what a head takes of a block, as keys and as values."""
    block_lines: int
    """Lines from a block to the next."""

    @property
    def n_kv_heads(self) -> int:
        return self.keys.shape[1]

    @property
    def widths(self) -> tuple[int, int]:
        """Of a key head and of a value head."""
        return self.keys.shape[3], self.values.shape[3]


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
    has_blind: bool
    """Whether a row sees none of the tile's keys."""
    _places: tuple[torch.Tensor, torch.Tensor] | None = None

    def places(self, kv: PagedKV) -> tuple[torch.Tensor, torch.Tensor]:
        """Lines of keys in the order [P, n_kv_heads, 32 * B, head_dim] and then of values alike, and ``dead`` for
        values in the order [P, n_kv_heads, 32 * B]. Made for the first layer of a group: they are equal for all."""
        if self._places is None:
            device = self.blocks.device
            head = torch.arange(kv.n_kv_heads, device=device)
            lines, before = [], 0
            for width in kv.widths:
                per_head = BLOCK_TOKENS * width // kv.unit
                of_head = before + head.view(1, -1, 1, 1) * per_head
                first = self.blocks[:, None, :, None] * kv.block_lines + of_head
                lines.append((first + torch.arange(per_head, device=device)).flatten())
                before += kv.n_kv_heads * per_head
            keys = self.hidden.shape[-1]
            piece, place = self.dead[:, None] // keys, self.dead[:, None] % keys
            self._places = torch.cat(lines), ((piece * kv.n_kv_heads + head) * keys + place).flatten()
        return self._places


@dataclass(slots=True)
class Metadata:
    """One group's plan of a step."""

    write_block: torch.Tensor
    """int64, one for each key that the step writes."""
    write_place: torch.Tensor
    """int64: place in the block."""
    tiles: tuple[Tile, ...]
    sees: torch.Tensor
    """[T, 1] bool: whether the row sees any key."""


class _Piece(NamedTuple):
    """Neighbouring rows of a sequence, and the blocks that they see, at least one."""

    seq: int
    first_row: int
    n_rows: int
    first_block: int
    n_blocks: int


class ReferenceAttention:
    """``AttentionBackend`` in torch, for any device."""

    latent = LATENT

    def bind(self, kv_cache: torch.Tensor, spec: KVSpec) -> PagedKV:
        check_layout(kv_cache, spec)
        n_blocks, stride, dtype = kv_cache.shape[0], kv_cache.stride(0), kv_cache.dtype
        scales = None
        if dtype in MOST:
            shape = (2, spec.n_kv_heads, BLOCK_TOKENS)
            scales = scales_of(kv_cache, math.prod(shape)).unflatten(1, shape)
            kv_cache = kv_cache.view(torch.int8)
        n_kv_heads, widths = spec.n_kv_heads, (spec.head_dim, value_dim(spec))
        keys, values = (
            kv_cache[:, first : first + n_kv_heads * BLOCK_TOKENS * width].unflatten(
                1, (n_kv_heads, BLOCK_TOKENS, width)
            )
            for first, width in zip((0, n_kv_heads * BLOCK_TOKENS * widths[0]), widths, strict=True)
        )
        unit = math.gcd(stride, *(BLOCK_TOKENS * width for width in widths))
        n_lines = ((n_blocks - 1) * stride + n_kv_heads * BLOCK_TOKENS * sum(widths)) // unit
        lines = kv_cache.as_strided((n_lines, unit), (unit, 1))
        return PagedKV(keys, values, scales, dtype, lines, unit, stride // unit)

    def plan(self, batch: Batch, group: int, spec: CacheSpec) -> Metadata:
        part = batch.groups[group]
        if part.key_ranges is None:
            ranges = torch.tensor([(spec.reads_from(p), p + 1) for p in batch.positions.tolist()]).view(-1, 2)
        else:
            ranges = check_ranges(part, batch.n_rows)
        pieces: dict[tuple[int, int], list[_Piece]] = {}
        for piece in _pieces(batch.query_starts.tolist(), ranges):
            # Key counts are rounded up to a power of two, so that stacked pieces waste at most half.
            size = 1 << (piece.n_blocks - 1).bit_length()
            pieces.setdefault((piece.n_rows, size), []).append(piece)
        ranges = ranges.to(part.block_table.device)
        sees = ranges[:, :1] < ranges[:, 1:]
        tiles = [
            _tile(stack, n_rows, ranges, part.block_table)
            for (n_rows, _), alike in pieces.items()
            for stack in _stacks(alike, n_rows)
        ]
        where = part.write_index
        return Metadata(where // BLOCK_TOKENS, where % BLOCK_TOKENS, tuple(tiles), sees)

    def write(self, k: torch.Tensor, v: torch.Tensor, kv_cache: PagedKV, metadata: Metadata) -> None:
        for part, (x, to) in enumerate(((k, kv_cache.keys), (v, kv_cache.values))):
            if kv_cache.scales is None:
                to[metadata.write_block, :, metadata.write_place] = x.to(to.dtype)
                continue
            numbers, scales = rounded(x, kv_cache.dtype)
            to[metadata.write_block, :, metadata.write_place] = numbers.view(to.dtype)
            kv_cache.scales[metadata.write_block, part, :, metadata.write_place] = scales

    def attend(
        self,
        q: torch.Tensor,
        kv_cache: PagedKV,
        metadata: Metadata,
        *,
        scale: float,
        soft_cap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        scores = _Scores(scale, soft_cap, sinks)
        tiles = metadata.tiles
        if len(tiles) == 1 and tiles[0].rows is None:
            return _attend_tile(q, kv_cache, tiles[0], scores)
        out = q.new_zeros((*q.shape[:2], kv_cache.widths[1]))
        for tile in tiles:
            assert tile.rows is not None
            out[tile.rows] = _attend_tile(q[tile.rows], kv_cache, tile, scores)
        return out

    def add_where_seen(self, x: torch.Tensor, y: torch.Tensor, factor: float, metadata: Metadata) -> torch.Tensor:
        return torch.where(metadata.sees, (x.float() + y.float() * factor).to(x.dtype), x)


BACKEND = ReferenceAttention()


def encoder_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    starts: torch.Tensor,
    *,
    scale: float,
    ranges: torch.Tensor | None = None,
) -> torch.Tensor:
    """``EncoderAttention`` in torch, one sequence after another, in fp32."""
    check_starts(starts, q.shape[0])
    out = q.new_empty((*q.shape[:2], v.shape[2]))
    shared = q.shape[1] // k.shape[1]
    for first, end in itertools.pairwise(starts.tolist()):
        keys, values = (x[first:end].float().repeat_interleave(shared, 1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q[first:end].float() * scale, keys)
        if ranges is not None:
            key, seen = torch.arange(end - first), ranges[first:end, :, None]
            scores = scores.masked_fill((key < seen[:, 0]) | (key >= seen[:, 1]), -torch.inf)
        weights = scores.softmax(-1)
        out[first:end] = torch.einsum("hqk,khd->qhd", weights, values).to(q.dtype)
    return out


def _pieces(starts: Sequence[int], ranges: torch.Tensor) -> Iterator[_Piece]:
    """Every row that sees a key once. Long chunks are cut so that a piece stays below MAX_TILE_AREA."""
    first, end = ranges.unbind(1)
    for seq, (row, stop) in enumerate(itertools.pairwise(starts)):
        keys = int(end[row:stop].max()) if stop > row else 0
        step = max(16, MAX_TILE_AREA // max(1, keys))
        for begin in range(row, stop, step):
            rows = slice(begin, min(stop, begin + step))
            seeing = first[rows] < end[rows]
            if seeing.any():
                first_block = int(first[rows][seeing].min()) // BLOCK_TOKENS
                n_blocks = blocks_of(int(end[rows][seeing].max())) - first_block
                yield _Piece(seq, begin, rows.stop - begin, first_block, n_blocks)


def _stacks(pieces: Sequence[_Piece], n_rows: int) -> Iterator[Sequence[_Piece]]:
    keys = max(piece.n_blocks for piece in pieces) * BLOCK_TOKENS
    size = max(1, MAX_TILE_AREA // (n_rows * keys))
    for start in range(0, len(pieces), size):
        yield pieces[start : start + size]


def _tile(pieces: Sequence[_Piece], n_rows: int, ranges: torch.Tensor, table: torch.Tensor) -> Tile:
    device = table.device
    seq, first_row, _, first_block, n_blocks = torch.tensor(pieces, dtype=torch.int64, device=device).unbind(1)
    columns = first_block[:, None] + torch.arange(int(n_blocks.max()), device=device)
    blocks = table[seq[:, None], columns.minimum((first_block + n_blocks - 1)[:, None])].to(torch.int64)

    rows = first_row[:, None] + torch.arange(n_rows, device=device)
    first, end = ranges[rows].unbind(-1)
    keys = torch.arange(columns.shape[1] * BLOCK_TOKENS, device=device)
    key = (first_block[:, None] * BLOCK_TOKENS + keys)[:, None, :]
    hidden = (key < first[:, :, None]) | (key >= end[:, :, None])
    return Tile(
        rows=None if rows.numel() == len(ranges) else rows.flatten(),
        n_rows=n_rows,
        blocks=blocks,
        hidden=hidden[:, None, None],
        dead=hidden.all(1).flatten().nonzero().squeeze(1),
        has_blind=bool(hidden.all(2).any()),
    )


class _Scores(NamedTuple):
    """From products of queries and keys to weights."""

    scale: float
    soft_cap: float | None
    sinks: torch.Tensor | None

    def weights(self, scores: torch.Tensor, hidden: torch.Tensor, has_blind: bool) -> torch.Tensor:
        """[P, n_kv_heads, shared, R, keys], scaled -> the same shape; takes the memory of ``scores``."""
        if self.soft_cap is not None:
            scores = torch.tanh_(scores.div_(self.soft_cap)).mul_(self.soft_cap)
        scores = scores.masked_fill_(hidden, -torch.inf)
        if self.sinks is not None:
            _, n_kv_heads, shared, _, _ = scores.shape
            sinks = self.sinks.float().view(1, n_kv_heads, shared, 1, 1).expand(*scores.shape[:-1], 1)
            weights = torch.cat((scores, sinks), -1).softmax(-1)[..., :-1]
        else:
            weights = scores.softmax(-1)
        return weights.masked_fill(hidden, 0.0) if has_blind else weights


def _attend_tile(q: torch.Tensor, kv: PagedKV, tile: Tile, scores_of: _Scores) -> torch.Tensor:
    """[P * R, n_heads, head_dim] -> [P * R, n_heads, v_head_dim] in the dtype of q."""
    n_pieces, n_rows, keys = tile.hidden.shape[0], tile.n_rows, tile.hidden.shape[-1]
    n_heads, n_kv_heads, (head_dim, v_head_dim) = q.shape[1], kv.n_kv_heads, kv.widths
    shared = n_heads // n_kv_heads
    lines, dead = tile.places(kv)
    gathered = kv.lines.index_select(0, lines).view(kv.dtype).float().flatten()
    all_keys = n_pieces * n_kv_heads * keys
    k = gathered[: all_keys * head_dim].view(n_pieces, n_kv_heads, keys, head_dim)
    v = gathered[all_keys * head_dim :].view(n_pieces, n_kv_heads, keys, v_head_dim)
    if kv.scales is not None:
        # [P, B, 2, n_kv_heads, 32] -> of keys and of values, as the numbers lie.
        scales = kv.scales[tile.blocks].permute(2, 0, 3, 1, 4).reshape(2, n_pieces, n_kv_heads, keys, 1)
        k, v = k * scales[0], v * scales[1]
    v.view(-1, v_head_dim).index_fill_(0, dead, 0.0)

    # The query heads of a KV head are further rows of the same product.
    x = q.view(n_pieces, n_rows, n_kv_heads, shared, head_dim).permute(0, 2, 3, 1, 4)
    x = (x.float() * scores_of.scale).reshape(n_pieces, n_kv_heads, shared * n_rows, head_dim)
    scores = torch.matmul(x, k.transpose(-1, -2)).view(n_pieces, n_kv_heads, shared, n_rows, keys)
    weights = scores_of.weights(scores, tile.hidden, tile.has_blind)
    out = torch.matmul(weights.reshape(n_pieces, n_kv_heads, shared * n_rows, keys), v)
    out = out.view(n_pieces, n_kv_heads, shared, n_rows, v_head_dim).permute(0, 3, 1, 2, 4)
    return out.reshape(n_pieces * n_rows, n_heads, v_head_dim).to(q.dtype)
