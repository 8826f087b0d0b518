"""Formats of weights in blocks, and rows in one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

BLOCK = 32
"""Values of k that are multiplied as whole numbers at a time: what activations have a scale for."""


Codes = Literal["whole", "e2m1", "e4m3"]
"""What numbers in memory stand for: themselves, or floats of so many bits of exponent and mantissa beside the sign, as
the Open Compute Project's formats FP4 and FP8 (the latter without infinities) have them."""

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def decode(numbers: torch.Tensor, codes: Codes) -> torch.Tensor:
    """uint8 to the float32 that each stands for."""
    if codes == "e2m1":
        return torch.tensor([*_E2M1, *(-value for value in _E2M1)])[numbers.int()]
    return (numbers if codes == "whole" else numbers.view(torch.float8_e4m3fn)).float()


def powers(scales: torch.Tensor) -> torch.Tensor:
    """uint8 (e8m0) to the float32 powers of two that they stand for, 2^(s - 127); 255 is no number."""
    return scales.contiguous().view(torch.float8_e8m0fnu).float()


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """A value is ``(number - offset) * scale + minimum``; scale and minimum are those of its group of neighbours."""

    bits: int
    """Of a number in memory: 4 or 8. Numbers are from 0 on."""
    offset: int
    group: int = BLOCK
    """Values of a scale: 32, or 16 with wide scales."""
    has_minimum: bool = False
    has_wide_scales: bool = False
    """Scales and minima in float32, else in float16."""
    codes: Codes = "whole"
    """Other than whole numbers have neither offset nor minimum."""

    @property
    def scale_dtype(self) -> torch.dtype:
        return torch.float32 if self.has_wide_scales else torch.float16

    def groups(self, n_in: int) -> int:
        """Of a row of ``n_in`` values; the last one may be short."""
        return -(-n_in // self.group)

    def __str__(self) -> str:
        """Bits, then what goes with them: 4 bits in groups of 32 with minima."""
        minima = " with minima" if self.has_minimum else "" if self.codes == "whole" else f" as {self.codes}"
        wide = " (fp32 scales)" if self.has_wide_scales else ""
        return f"{self.bits} bits in groups of {self.group}{minima}{wide}"


INT8 = BlockFormat(bits=8, offset=128)
INT4 = BlockFormat(bits=4, offset=8)


@dataclass(frozen=True, slots=True)
class BlockRows:
    """Rows [n, n_in] of a weight."""

    format: BlockFormat
    numbers: torch.Tensor
    """[n, n_in] uint8."""
    scales: torch.Tensor
    """[n, groups] in the format's dtype."""
    minima: torch.Tensor | None = None
    """The same, where the format has them."""

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: slice) -> BlockRows:
        return self.map(lambda part: part[rows])

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> BlockRows:
        """With ``change``, which moves rows, done to all parts."""
        minima = None if self.minima is None else change(self.minima)
        return BlockRows(self.format, change(self.numbers), change(self.scales), minima)

    def map_scales(self, change: Callable[[torch.Tensor], torch.Tensor]) -> BlockRows:
        """With ``change`` done to scales and minima."""
        minima = None if self.minima is None else change(self.minima)
        return BlockRows(self.format, self.numbers, change(self.scales), minima)

    def values(self) -> torch.Tensor:
        """[n, n_in] float32: the product is rounded, then the sum."""
        n_in = self.numbers.shape[1]

        def spread(numbers: torch.Tensor) -> torch.Tensor:
            return numbers.float().repeat_interleave(self.format.group, dim=1)[:, :n_in]

        product = (decode(self.numbers, self.format.codes) - self.format.offset) * spread(self.scales)
        return product if self.minima is None else product + spread(self.minima)
