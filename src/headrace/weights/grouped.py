"""Matrices of small numbers with scales: their values, and their blocks where there are kernels for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from headrace.core.errors import CheckpointError
from headrace.quant.formats import BLOCK, BlockFormat, BlockRows, Codes, decode

from .files import Rows, slices

Read = Callable[[int, int], torch.Tensor]
"""Rows [first, last) of something that a matrix has a row of for each output."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What is read of a matrix [n, k], once its tensors are open."""

    numbers: Read
    """[rows, k] uint8."""
    scales: Read
    """[rows, groups] of any float dtype."""
    zeros: Read | None = None
    """[rows, groups]: the numbers that stand for zero; None where all groups have the same."""


@dataclass(frozen=True, slots=True)
class Grouped:
    """A matrix [n, k] whose values are ``(number - zero) * scale`` in float32: one subtraction, one product."""

    shape: tuple[int, int]
    label: str
    """The form, for people."""
    stored: str
    """A tensor of the files that it is made of."""
    bits: int
    group: int
    """Neighbours in a row that share a scale; k: the whole row."""
    open: Callable[[], Parts]
    zero: int | None = 0
    """The number that stands for zero in all groups; None: each has its own."""
    codes: Codes = "whole"
    has_half_scales: bool = False
    """Scales have places in float16."""
    columns: torch.Tensor | None = None
    """[k]: the group of each column, where that is not column // group."""
    factors: torch.Tensor | None = None
    """[k]: what the inputs are multiplied with."""

    dtype = torch.float32

    @property
    def why_dense(self) -> str:
        """Why it cannot stay in its few bits; empty where it can."""
        if self.columns is not None:
            return "groups are not of neighbours (desc_act)"
        if self.factors is not None:
            return "inputs have factors of their own (pre_quant_scale)"
        if self.codes == "e4m3" and self._width != BLOCK:
            return f"groups of {self.group} are not a multiple of 32"
        return "" if self._width else f"groups of {self.group} are not a multiple of 16"

    @property
    def _width(self) -> int:
        """Of groups in memory; 0 where there is none that cuts the matrix's own into equal parts."""
        if self.group >= self.shape[1] or self.group % BLOCK == 0:
            return BLOCK
        return 16 if self.group % 16 == 0 else 0

    @property
    def format(self) -> BlockFormat | None:
        """How it is kept without loss, or None."""
        if self.why_dense:
            return None
        wide = not self.has_half_scales or self._width == 16 or self.zero is None or self.codes == "e2m1"
        return BlockFormat(
            self.bits,
            self.zero or 0,
            self._width,
            has_minimum=self.zero is None,
            has_wide_scales=wide,
            codes=self.codes,
        )

    def rows(self, path: Path) -> Rows:
        """Values, float32. ``path``: of the checkpoint, for errors."""
        parts, n_in = self.open(), self.shape[1]
        columns = torch.arange(n_in) // self.group if self.columns is None else self.columns.long()

        def read(first: int, last: int) -> torch.Tensor:
            numbers, scales, zeros = self._read(parts, first, last, path)
            values = decode(numbers, self.codes).sub_(self.zero if zeros is None else zeros[:, columns])
            values.mul_(scales[:, columns])
            return values if self.factors is None else values.mul_(self.factors.float())

        return slices(self.shape[0], n_in * 4, read)

    def block_rows(self, path: Path) -> Iterator[tuple[int, BlockRows]]:
        """In ``format``: equal values, to the bit where scales have 16 bits, else but for one rounding in float32."""
        form, parts = self.format, self.open()
        if form is None:
            raise CheckpointError(f"{path}: {self.stored!r} cannot be kept as it is: {self.why_dense}")
        groups = torch.arange(form.groups(self.shape[1])) * form.group // self.group

        def read(first: int, last: int) -> BlockRows:
            numbers, scales, zeros = self._read(parts, first, last, path)
            minima = None if zeros is None else -(zeros * scales)
            return BlockRows(form, numbers, scales, minima).map_scales(
                lambda part: part[:, groups].to(form.scale_dtype).contiguous()
            )

        return slices(self.shape[0], self.shape[1] * 4, read)

    def _read(
        self, parts: Parts, first: int, last: int, path: Path
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Numbers, and float32 scales and zeros, checked."""
        numbers, scales = parts.numbers(first, last), parts.scales(first, last).float()
        if not scales.isfinite().all():
            raise CheckpointError(f"{path}: {self.stored!r} has scales that are infinite or not a number")
        if self.codes == "e4m3" and bool(((numbers & 0x7F) == 0x7F).any()):
            raise CheckpointError(f"{path}: {self.stored!r} has values that are not a number")
        if parts.zeros is None:
            return numbers, scales, None
        zeros = parts.zeros(first, last)
        if self.zero is None:
            return numbers, scales, zeros.float()
        if bool((zeros != self.zero).any()):
            raise CheckpointError(
                f"{path}: {self.stored!r} has other zeros than {self.zero}, and quantization_config says that the form"
                " is symmetric: set sym to false there"
            )
        return numbers, scales, None
