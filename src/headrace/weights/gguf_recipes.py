"""How a tensor of the hub is made of tensors of a GGUF file: parts of one or more of them, unit by unit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from headrace.core.errors import CheckpointError
from headrace.quant.formats import BlockFormat, BlockRows

from .files import Rows, slices
from .gguf_blocks import block_format, block_rows, dequantise, dequantised_dtype
from .gguf_reader import TensorInfo

ReadBytes = Callable[[TensorInfo, int, int], torch.Tensor]
"""Bytes [first, last) of a tensor, uint8."""

Combine = Callable[[Sequence[torch.Tensor]], torch.Tensor]
"""Of each piece [units, rows of one, ...], to [units * rows that one makes, ...]. Moves numbers, so that it can be done
to the parts of blocks as well; unless the recipe says otherwise."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What a unit takes of a tensor: unit i the rows (first dimension) from ``first + i * rows`` on."""

    info: TensorInfo
    rows: int
    first: int = 0


@dataclass(frozen=True, slots=True)
class Recipe:
    """``n_units`` heads, experts or rows that are made alike, one below another."""

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    n_units: int
    combine: Combine
    moves_blocks: bool = True
    """``combine`` may be done to the numbers, scales and minima of blocks each."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the values: the stored one, float32 for block forms and for mixtures."""
        found = {dequantised_dtype(piece.info.type) for piece in self.pieces}
        return found.pop() if len(found) == 1 else torch.float32

    @property
    def format(self) -> BlockFormat | None:
        """How blocks are kept without loss; None for floats, vectors, and blocks that do not stay whole."""
        found = {block_format(piece.info.type) for piece in self.pieces}
        stay = self.moves_blocks and len(self.shape) > 1 and len(found) == 1
        return found.pop() if stay else None

    def rows(self, read: ReadBytes) -> Rows:
        def values(piece: Piece, first: int, last: int) -> torch.Tensor:
            raw, shape = _raw(piece, first, last, read)
            return dequantise(raw, piece.info.type).view(shape).to(self.dtype)

        return self._slices(lambda first, last: self.combine([values(piece, first, last) for piece in self.pieces]))

    def block_rows(self, read: ReadBytes) -> Iterator[tuple[int, BlockRows]]:
        """As ``rows``, in ``format``."""

        def made(first: int, last: int) -> BlockRows:
            parts = [_blocks(piece, first, last, read) for piece in self.pieces]
            minima = [part.minima for part in parts if part.minima is not None]
            return BlockRows(
                parts[0].format,
                self.combine([part.numbers for part in parts]),
                self.combine([part.scales for part in parts]),
                self.combine(minima) if minima else None,
            )

        return self._slices(made)

    def _slices(self, made: Callable[[int, int], torch.Tensor | BlockRows]) -> Iterator:
        """``made`` of some units at a time, about a MiB as stored, with the row that it begins at."""
        height = self.shape[0] // self.n_units
        unit_bytes = sum(piece.info.nbytes // piece.info.shape[0] * piece.rows for piece in self.pieces)
        for first, part in slices(self.n_units, unit_bytes, made):
            yield first * height, part


def _raw(piece: Piece, first: int, last: int, read: ReadBytes) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Bytes of units [first, last), and their shape as numbers: [units, rows, ...]."""
    info = piece.info
    start, stop = ((piece.first + unit * piece.rows) * info.nbytes // info.shape[0] for unit in (first, last))
    return read(info, start, stop), (last - first, piece.rows, *info.shape[1:])


def _blocks(piece: Piece, first: int, last: int, read: ReadBytes) -> BlockRows:
    """The same in blocks, all parts [units, rows, ..., columns or groups]."""
    raw, shape = _raw(piece, first, last, read)
    found = block_rows(raw, piece.info.type, math.prod(shape[:-1]))
    return found.map(lambda part: part.view(*shape[:-1], -1))


def alone(
    info: TensorInfo, undo: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, ...], unit_rows: int = 1
) -> Recipe:
    """One tensor. ``undo`` takes a multiple of ``unit_rows`` whole rows and gives as many units of ``shape``."""
    # Blocks of a vector may span what would be its rows: it is one unit, and read whole.
    rows = info.shape[0] if len(info.shape) == 1 else unit_rows
    return Recipe(shape, (Piece(info, rows),), info.shape[0] // rows, lambda parts: undo(parts[0].flatten(0, 1)))


def of_expert(info: TensorInfo, expert: int) -> TensorInfo:
    """One of the matrices that lie one behind another in a tensor."""
    nbytes = info.nbytes // info.shape[0]
    return replace(info, shape=info.shape[1:], offset=info.offset + expert * nbytes, nbytes=nbytes)


def input_major(infos: Sequence[TensorInfo], path: Path, *, interleaved: bool = False) -> Recipe:
    """Experts [n, outputs, inputs] as [n, inputs, outputs]; of two tensors, outputs of both, in turns or not."""
    _check(path, infos, all(len(info.shape) == 3 and info.shape == infos[0].shape for info in infos), "equal experts")
    n, height, width = infos[0].shape
    shape = (n, width, height * len(infos))
    return Recipe(shape, _slabs(infos), n, lambda parts: _beside(parts, interleaved).transpose(1, 2))


def beside(infos: Sequence[TensorInfo], path: Path) -> Recipe:
    """Vectors of experts [n, width], the numbers of both in turns."""
    _check(path, infos, all(len(info.shape) == 2 and info.shape == infos[0].shape for info in infos), "equal vectors")
    n, width = infos[0].shape
    return Recipe((n, width * len(infos)), _slabs(infos), n, partial(_beside, interleaved=True))


def _beside(parts: Sequence[torch.Tensor], interleaved: bool) -> torch.Tensor:
    """[n, 1, height, ...] each, to [n, height of all, ...]."""
    return torch.stack([part.squeeze(1) for part in parts], 2 if interleaved else 1).flatten(1, 2)


def latent_halves(infos: Sequence[TensorInfo], path: Path) -> Recipe:
    """Latent attention: keys [heads, rank, k] and values [heads, v, rank] as ``kv_b_proj`` [heads * (k + v), rank]."""
    shapes = [info.shape for info in infos]
    fit = [len(shape) for shape in shapes] == [3, 3] and (shapes[0][0], shapes[0][1]) == (shapes[1][0], shapes[1][2])
    _check(path, infos, fit, "keys [heads, rank, k] and values [heads, v, rank]")
    n, rank, n_keys = shapes[0]

    def combine(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        keys, values = (part.squeeze(1) for part in parts)
        return torch.cat([keys.transpose(1, 2), values], dim=1).flatten(0, 1)

    return Recipe((n * (n_keys + shapes[1][1]), rank), _slabs(infos), n, combine, moves_blocks=False)


def by_key_head(infos: Sequence[TensorInfo], path: Path, *, n_heads: int, key_rows: int) -> Recipe:
    """Gated delta nets: [queries | keys | values] and [gates], all heads of a kind together, as those of each key head
    together. ``key_rows``: of the keys of a head."""
    (n_qkv, width), (n_gates, other) = (info.shape if len(info.shape) == 2 else (0, 0) for info in infos)
    n_keys, value_rows = n_heads * key_rows, n_gates // n_heads
    fit = width == other and n_gates == n_heads * value_rows > 0 and n_qkv == 2 * n_keys + n_gates
    _check(path, infos, fit, f"rows of {n_heads} key heads")
    qkv, gates = infos
    pieces = (
        Piece(qkv, key_rows),
        Piece(qkv, key_rows, n_keys),
        Piece(qkv, value_rows, 2 * n_keys),
        Piece(gates, value_rows),
    )
    return Recipe((n_qkv + n_gates, width), pieces, n_heads, lambda parts: torch.cat(list(parts), 1).flatten(0, 1))


def _slabs(infos: Sequence[TensorInfo]) -> tuple[Piece, ...]:
    return tuple(Piece(info, 1) for info in infos)


def _check(path: Path, infos: Sequence[TensorInfo], fits: bool, expected: str) -> None:
    if not fits:
        found = ", ".join(f"{info.name!r} {list(info.shape)}" for info in infos)
        raise CheckpointError(f"{path}: tensors {found}: expected {expected}")
