"""Products with weights in blocks, step by step: the bits that every implementation gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from headrace.ops.block_linear import StackedBlocks, whole_segments
from headrace.ops.linear import LinearOps
from headrace.quant.formats import BLOCK, BlockFormat, BlockRows, decode

_SMALLEST = 2.0**-100


@dataclass(slots=True)
class PlainBlocks:
    """A weight [n_out, n_in] in blocks."""

    rows: BlockRows
    dtype: torch.dtype
    """Of what is multiplied with it and looked up in it."""


@dataclass(frozen=True, slots=True)
class RoundedRows:
    """Activations: block by block, whole numbers times a scale."""

    numbers: torch.Tensor
    """[T, blocks, 32] whole numbers from -127 to 127, in float32."""
    scales: torch.Tensor
    """[T, blocks] float32."""


def round_rows(x: torch.Tensor) -> RoundedRows:
    """x [T, n_in]; a block's scale is its largest size / 127, NaN where a value is not finite."""
    x = x.float()
    blocks = F.pad(x, (0, -x.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    largest = blocks.abs().amax(2)
    is_zero = ~(largest >= _SMALLEST) | ~largest.isfinite()
    # Divided by a tensor: torch turns a number over a tensor into a reciprocal and a product.
    factor = torch.where(is_zero, 0.0, torch.full_like(largest, 127) / largest)
    numbers = torch.where(is_zero.unsqueeze(2), 0.0, (blocks * factor.unsqueeze(2)).round())
    scales = torch.where(is_zero, 0.0, largest / torch.full_like(largest, 127))
    return RoundedRows(numbers, torch.where(largest.isfinite(), scales, torch.nan))


def fma(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """a * b + c in float32 with one rounding: the product is exact in double, and the sum is rounded to odd there,
    which rounding to float32 then cannot tell from the exact one (Boldo and Melquiond, 2008)."""
    product, addend = a.double() * b.double(), c.double()
    total = product + addend
    part = total - product
    error = (product - (total - part)) + (addend - part)
    bits = total.view(torch.int64)
    is_even = (bits & 1 == 0) & (error != 0) & total.isfinite()
    step = torch.where((error > 0) == (total > 0), 1, -1)
    return torch.where(is_even, bits + step, bits).view(torch.float64).float()


class ReferenceBlockLinear:
    """``BlockLinearOps`` over plain tensors."""

    def __init__(self, form: BlockFormat) -> None:
        self._format = form

    def nbytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        n_out, n_in = shape
        scales = self._format.groups(n_in) * self._format.scale_dtype.itemsize
        return n_out * (n_in + scales * (2 if self._format.has_minimum else 1))

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> PlainBlocks:
        n_out, n_in = shape
        numbers = torch.zeros(shape, dtype=torch.uint8, device=device)
        scales = torch.zeros(n_out, self._format.groups(n_in), dtype=self._format.scale_dtype, device=device)
        minima = torch.zeros_like(scales) if self._format.has_minimum else None
        return PlainBlocks(BlockRows(self._format, numbers, scales, minima), dtype)

    def fill(self, data: PlainBlocks, first_row: int, rows: BlockRows) -> None:
        last = first_row + rows.numbers.shape[0]
        data.rows.numbers[first_row:last] = rows.numbers
        data.rows.scales[first_row:last] = rows.scales
        if data.rows.minima is not None and rows.minima is not None:
            data.rows.minima[first_row:last] = rows.minima

    def memory(self, data: PlainBlocks) -> list[torch.Tensor]:
        parts = (data.rows.numbers, data.rows.scales, data.rows.minima)
        return [part.view(-1).view(torch.uint8) for part in parts if part is not None]

    def apply(
        self,
        x: torch.Tensor,
        weight: PlainBlocks,
        bias: torch.Tensor | None,
        *,
        segments: int = 1,
        dtype: torch.dtype | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        n_blocks = -(-x.shape[1] // BLOCK)
        each = n_blocks // whole_segments(segments, x.shape[1])
        starts = range(0, n_blocks, each)
        if self._format.codes == "e4m3":
            sums = [self._float_sum(x.float(), weight.rows, first, first + each) for first in starts]
        else:
            rounded = round_rows(x)
            sums = [self._sum(rounded, weight.rows, first, first + each) for first in starts]
        y = sums[0] if len(sums) == 1 else (sums[0] + sums[1]) + (sums[2] + sums[3])
        y = (y if bias is None else y + bias.float()).to(dtype or x.dtype)
        return y if out is None else out.copy_(y)

    def _sum(self, x: RoundedRows, rows: BlockRows, first: int, last: int) -> torch.Tensor:
        """Over blocks [first, last): [T, n_out]."""
        form, n_groups = self._format, BLOCK // self._format.group
        # e2m1 is whole when doubled.
        times = 2.0 if form.codes == "e2m1" else 1.0
        total = x.scales.new_zeros(x.scales.shape[0], rows.numbers.shape[0])
        for group in range(first * n_groups, min(last * n_groups, rows.scales.shape[1])):
            block, place = divmod(group, n_groups)
            numbers = rows.numbers[:, group * form.group : (group + 1) * form.group]
            weights = decode(numbers, form.codes) * times - form.offset
            start = place * form.group
            rounded = x.numbers[:, block, start : start + weights.shape[1]]
            scale = x.scales[:, block, None]
            # Whole numbers below 2^24: exact in any order.
            total = fma(rounded @ weights.T, rows.scales[:, group].float() / times * scale, total)
            if rows.minima is not None:
                total = fma(rows.minima[:, group].float(), scale * rounded.sum(1, keepdim=True), total)
        return total

    def _float_sum(self, x: torch.Tensor, rows: BlockRows, first: int, last: int) -> torch.Tensor:
        """Over blocks [first, last) of numbers that are multiplied as floats: [T, n_out]."""
        total = x.new_zeros(x.shape[0], rows.numbers.shape[0])
        weights = decode(rows.numbers, self._format.codes) * 2.0**-8
        for block in range(first, min(last, rows.scales.shape[1])):
            part = torch.zeros_like(total)
            for i in range(block * BLOCK, min((block + 1) * BLOCK, x.shape[1])):
                part = fma(weights[:, i], x[:, i, None], part)
            total = fma(part, rows.scales[:, block].float() * 2.0**8, total)
        return total

    def embed(self, ids: torch.Tensor, weight: PlainBlocks) -> torch.Tensor:
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < weight.rows.numbers.shape[0]:
            raise IndexError("an id is outside the embedding's table")
        return weight.rows.map(lambda part: part[ids]).values().to(weight.dtype)


def make(parts: tuple[tuple[int, BlockFormat], ...]) -> LinearOps:
    """Operators for a weight of (rows, format) parts."""
    made = [(rows, ReferenceBlockLinear(form)) for rows, form in parts]
    return made[0][1] if len(made) == 1 else StackedBlocks(made, lambda shape, dtype: torch.empty(shape, dtype=dtype))
