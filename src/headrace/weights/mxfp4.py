"""MXFP4: blocks of 32 values of 4 bits (e2m1) that share a power of two, of matrices and of experts (GPT-OSS).

The format: Open Compute Project, "Microscaling Formats (MX) Specification", version 1.0. A byte holds two neighbours,
the first in its low bits. A scale s stands for 2^(s - 127).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from headrace.core.errors import CheckpointError
from headrace.quant.formats import BlockFormat, BlockRows, decode, powers

from .few_bits import pairs
from .files import Rows, slices
from .forms import Found, check_part
from .grouped import Grouped, Parts
from .safetensors import SafetensorsCheckpoint

_BLOCKS, _SCALES = "_blocks", "_scales"
_BLOCK, _BLOCK_BYTES = 32, 16
_FORMAT = BlockFormat(4, 0, has_wide_scales=True, codes="e2m1")


def find(stored: SafetensorsCheckpoint, config: Mapping[str, Any]) -> Found:
    """The tensors ``P`` that are stored as ``P_blocks`` and ``P_scales``. Raises CheckpointError for parts that do not
    fit together."""
    names = frozenset(stored.names())
    bases = [name.removesuffix(_BLOCKS) for name in names if name.endswith(_BLOCKS)]
    forms = {base: Mxfp4Experts(stored, names, base) for base in bases}
    return Found(forms, frozenset(base + end for base in bases for end in (_BLOCKS, _SCALES)))


class Mxfp4Experts:
    """A tensor [n, k, m] that is stored as uint8 [n, m, k / 32, 16] and scales uint8 [n, m, k / 32]: note that the last
    two dimensions change places. Every value has a place in bfloat16.

    ``k`` of experts is what products sum over, so that ``block_rows`` has groups along the second dimension.
    """

    dtype = torch.bfloat16
    label = "MXFP4 experts"
    why_dense = ""
    format = _FORMAT

    def __init__(self, stored: SafetensorsCheckpoint, names: frozenset[str], base: str) -> None:
        self._read = stored.part
        self.stored, self._scales = base + _BLOCKS, base + _SCALES
        where = f"{stored.file_of(self.stored)}: tensor {self.stored!r}"
        if self._scales not in names:
            raise CheckpointError(f"{where} has no {self._scales!r}")
        shape = stored.shape(self.stored)
        if len(shape) != 4 or shape[3] != _BLOCK_BYTES:
            raise CheckpointError(f"{where}: expected [n, m, k / 32, {_BLOCK_BYTES}], found {list(shape)}")
        check_part(stored, self.stored, (torch.uint8,), shape)
        check_part(stored, self._scales, (torch.uint8,), shape[:3])
        self.shape = (shape[0], _BLOCK * shape[2], shape[1])

    def rows(self, path: Path) -> Rows:
        def read(first: int, last: int) -> torch.Tensor:
            numbers, scales = self._parts(first, last, path)
            values = decode(numbers, "e2m1").unflatten(2, (-1, _BLOCK)) * scales.unsqueeze(3)
            return values.bfloat16().flatten(2).transpose(1, 2)

        return slices(self.shape[0], self._slice_bytes, read)

    def block_rows(self, path: Path) -> Iterator[tuple[int, BlockRows]]:
        def read(first: int, last: int) -> BlockRows:
            numbers, scales = self._parts(first, last, path)
            return BlockRows(_FORMAT, numbers.transpose(1, 2), scales.transpose(1, 2))

        return slices(self.shape[0], self._slice_bytes, read)

    @property
    def _slice_bytes(self) -> int:
        return self.shape[1] * self.shape[2] * 4

    def _parts(self, first: int, last: int, path: Path) -> tuple[torch.Tensor, torch.Tensor]:
        """Numbers [n, m, k] and float32 scales [n, m, k / 32]."""
        scales = powers(self._read(self._scales, first, last))
        if not scales.isfinite().all():
            raise CheckpointError(f"{path}: {self._scales!r} has scales that are not a number")
        return pairs(self._read(self.stored, first, last)).flatten(2), scales


def matrix(stored: SafetensorsCheckpoint, packed: str, scales: str, label: str) -> Grouped:
    """A matrix [n, k] in uint8 [n, k / 2] and scales uint8 [n, k / 32]."""
    n_out, n_in = stored.shape(packed)[0], 2 * stored.shape(packed)[1]
    check_part(stored, scales, (torch.uint8,), (n_out, -(-n_in // _BLOCK)))
    return Grouped(
        shape=(n_out, n_in),
        label=label,
        stored=packed,
        bits=4,
        group=_BLOCK,
        open=partial(_open, stored, packed, scales),
        codes="e2m1",
    )


def _open(stored: SafetensorsCheckpoint, packed: str, scales: str) -> Parts:
    return Parts(
        lambda first, last: pairs(stored.part(packed, first, last)),
        lambda first, last: powers(stored.part(scales, first, last)),
    )
