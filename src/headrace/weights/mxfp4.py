"""Experts in MXFP4 (GPT-OSS), dequantised while they are read.

The format: blocks of 32 values of 4 bits (sign, 2 bits of exponent, 1 of mantissa) that share a power of two; Open
Compute Project, "Microscaling Formats (MX) Specification", version 1.0.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from headrace.core.errors import CheckpointError

from .checkpoint import Checkpoint
from .files import Rows, check_destination, fill_by_rows

log = logging.getLogger("headrace")

_BLOCKS, _SCALES = "_blocks", "_scales"
_BLOCK_BYTES = 16
_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def is_mxfp4(config: Mapping[str, Any]) -> bool:
    """Whether ``quantization_config`` asks for this form."""
    quantised = config.get("quantization_config")
    return isinstance(quantised, Mapping) and quantised.get("quant_method") == "mxfp4"


class Mxfp4Checkpoint:
    """A ``Checkpoint`` over one whose tensors ``P`` [n, k, m] may be stored as ``P_blocks`` uint8 [n, m, k / 32, 16]
    and ``P_scales`` uint8 [n, m, k / 32]: note that the last two dimensions change places.

    A byte holds two neighbours, the first in its low bits. A scale s stands for 2^(s - 127). Every value has a place in
    bfloat16, which ``dtype`` gives for them.
    """

    def __init__(self, stored: Checkpoint) -> None:
        self.path = stored.path
        self._stored = stored
        log.warning("%s: MXFP4 experts are dequantised while they are read, and computed with in dtype", stored.path)
        self._names = []
        self._quantised: dict[str, tuple[int, ...]] = {}
        present = set(stored.names())
        for name in stored.names():
            plain = name.removesuffix(_BLOCKS)
            if name.endswith(_BLOCKS):
                self._quantised[plain] = self._checked_shape(plain, present)
            if not (name.endswith(_SCALES) and name.removesuffix(_SCALES) + _BLOCKS in present):
                self._names.append(plain)
        low, high = torch.arange(256) & 15, torch.arange(256) >> 4
        values = torch.tensor([*_VALUES, *(-value for value in _VALUES)])
        self._pairs = torch.stack((values[low], values[high]), 1)

    def config(self) -> dict[str, Any]:
        """Without ``quantization_config``: what ``rows`` gives is not quantised."""
        return {name: value for name, value in self._stored.config().items() if name != "quantization_config"}

    def generation_config(self) -> dict[str, Any]:
        return self._stored.generation_config()

    def names(self) -> Sequence[str]:
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._quantised[name] if name in self._quantised else self._stored.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return torch.bfloat16 if name in self._quantised else self._stored.dtype(name)

    def tensor(self, name: str) -> torch.Tensor:
        out = torch.empty(self.shape(name), dtype=self.dtype(name))
        self.read_into(name, out)
        return out

    def read_into(self, name: str, out: torch.Tensor) -> None:
        if name not in self._quantised:
            self._stored.read_into(name, out)
            return
        check_destination(out, self.shape(name), self.path, name)
        fill_by_rows(out, self.rows(name))

    def rows(self, name: str) -> Rows:
        return self._dequantised(name) if name in self._quantised else self._stored.rows(name)

    def file_of(self, name: str) -> Path:
        return self._stored.file_of(f"{name}{_BLOCKS}" if name in self._quantised else name)

    def nbytes(self) -> int:
        return self._stored.nbytes()

    def close(self) -> None:
        self._stored.close()

    def _dequantised(self, name: str) -> Rows:
        scales = self._stored.tensor(f"{name}{_SCALES}").view(torch.float8_e8m0fnu)
        for first, blocks in self._stored.rows(f"{name}{_BLOCKS}"):
            factors = scales[first : first + len(blocks)].float()[..., None, None]
            values = (self._pairs[blocks.int()] * factors).bfloat16()
            yield first, values.flatten(2).transpose(1, 2)

    def _checked_shape(self, name: str, present: set[str]) -> tuple[int, ...]:
        """Raises CheckpointError for parts that do not fit together."""
        blocks, scales = f"{name}{_BLOCKS}", f"{name}{_SCALES}"
        where = f"{self._stored.file_of(blocks)}: tensor {blocks!r}"
        if scales not in present:
            raise CheckpointError(f"{where} has no {scales!r}")
        shape = self._stored.shape(blocks)
        kinds = {self._stored.dtype(blocks), self._stored.dtype(scales)}
        if (
            len(shape) != 4
            or shape[3] != _BLOCK_BYTES
            or self._stored.shape(scales) != shape[:3]
            or kinds != {torch.uint8}
        ):
            raise CheckpointError(
                f"{where}: expected uint8 [n, m, k / 32, {_BLOCK_BYTES}] with scales uint8 [n, m, k / 32], found"
                f" {list(shape)} with scales {list(self._stored.shape(scales))}, {', '.join(map(str, kinds))}"
            )
        return shape[0], 32 * shape[2], shape[1]
