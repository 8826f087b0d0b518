"""Float rows to whole numbers and scales: what ``int8`` and ``int4`` do when a model is loaded."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from headrace.core.errors import CheckpointError
from headrace.quant.formats import INT8, BlockFormat, BlockRows

_PLACES = (-9.0, -8.5, -8.0, -7.5, 7.0, 7.5)
"""Where a group's largest value may come to lie, in steps: numbers are from -8 to 7, and it may be cut a little."""
_SMALLEST = 2.0**-100
"""Smaller steps make zeros: their inverse may be infinite."""

NOT_FINITE = "a weight is infinite or not a number; it cannot be quantised: set quant_config to None"
TOO_LARGE = "a weight is too large for a scale in float16: set quant_config to None"


def round_blocks(rows: torch.Tensor, form: BlockFormat) -> BlockRows:
    """Rows [n, n_in] in ``INT8`` or ``INT4``, groups of 32. Raises ``CheckpointError`` for what has no scale.

    int8: the largest size is 127 steps. int4: of several scales the one with the least squared error in the group, and
    then the best for the numbers that it gives. Sums add halves to one another until one value is left.
    """
    rows = rows.float()
    if not rows.isfinite().all():
        raise CheckpointError(NOT_FINITE)
    groups = F.pad(rows, (0, -rows.shape[1] % form.group)).unflatten(1, (-1, form.group))
    low, high = (-127, 127) if form == INT8 else (-8, 7)
    scales = (groups.abs().amax(2) / 127 if form == INT8 else _best_of_4_bits(groups)).to(torch.float16)
    if not scales.isfinite().all():
        raise CheckpointError(TOO_LARGE)
    numbers = _numbers(groups, scales.float(), low, high).add_(form.offset).to(torch.uint8)
    return BlockRows(form, numbers.flatten(1)[:, : rows.shape[1]].contiguous(), scales)


def _best_of_4_bits(groups: torch.Tensor) -> torch.Tensor:
    largest = groups.gather(2, groups.abs().argmax(2, keepdim=True)).squeeze(2)
    best_error = torch.full_like(largest, torch.inf)
    best = largest / -8
    errors = torch.empty_like(groups)  # one buffer for all: what is new each time costs more than the arithmetic
    for place in _PLACES:
        scales = largest / place
        inverse = torch.where(scales.abs() >= _SMALLEST, scales.reciprocal(), 0.0)
        torch.mul(groups, inverse.unsqueeze(2), out=errors)
        errors.round_().clamp_(-8, 7).mul_(scales.unsqueeze(2)).sub_(groups)
        error = _sum(errors.square_())
        better = error < best_error
        best, best_error = torch.where(better, scales, best), torch.where(better, error, best_error)
    numbers = _numbers(groups, best, -8, 7)
    fitted = _sum(groups * numbers) / _sum(numbers.square()).clamp_min(1)
    return torch.where(best.abs() >= _SMALLEST, fitted, best)


def _sum(values: torch.Tensor) -> torch.Tensor:
    """Over the last dimension, in an order that is the same everywhere."""
    while values.shape[-1] > 1:
        half = values.shape[-1] // 2
        values = values[..., :half] + values[..., half:]
    return values.squeeze(-1)


def _numbers(groups: torch.Tensor, scales: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """The nearest whole numbers of steps, as floats."""
    steps = scales.unsqueeze(2)
    return torch.where(steps.abs() >= _SMALLEST, groups / steps, 0.0).round_().clamp_(low, high)
