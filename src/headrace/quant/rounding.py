"""Float rows to whole numbers and scales: what ``int8`` and ``int4`` do when a model is loaded."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from headrace.core.errors import CheckpointError

from .formats import INT4, INT8, BlockFormat, BlockRows

_PLACES = (-9.0, -8.5, -8.0, -7.5, 7.0, 7.5)
"""Where a group's largest value may come to lie, in steps: numbers are from -8 to 7, and it may be cut a little."""


def to_int8(rows: torch.Tensor) -> BlockRows:
    """Groups of 32: the largest size is 127 steps."""
    groups = _groups(rows, INT8)
    scales = (groups.abs().amax(2) / 127).to(torch.float16)
    return _finish(rows, INT8, groups, scales, -127, 127)


def to_int4(rows: torch.Tensor) -> BlockRows:
    """Groups of 32: of several scales, the one with the least squared error in the group, and then the best near it."""
    groups = _groups(rows, INT4)
    largest = groups.gather(2, groups.abs().argmax(2, keepdim=True)).squeeze(2)
    best_error = torch.full_like(largest, torch.inf)
    best = largest / -8
    errors = torch.empty_like(groups)  # one buffer for all: what is new each time costs more than the arithmetic
    for place in _PLACES:
        scales = largest / place
        steps = scales.unsqueeze(2)
        torch.mul(groups, torch.where(steps != 0, steps.reciprocal(), 0.0), out=errors)
        errors.round_().clamp_(-8, 7).mul_(steps).sub_(groups)
        error = torch.linalg.vecdot(errors, errors)
        better = error < best_error
        best, best_error = torch.where(better, scales, best), torch.where(better, error, best_error)
    # The scale that is best for these numbers.
    numbers = _numbers(groups, best, -8, 7)
    best = torch.where(best != 0, (groups * numbers).sum(2) / numbers.square().sum(2).clamp_min(1), best)
    return _finish(rows, INT4, groups, best.to(torch.float16), -8, 7)


def _groups(rows: torch.Tensor, form: BlockFormat) -> torch.Tensor:
    """[n, n_in] to float32 [n, groups, group], zeros behind the last value."""
    rows = rows.float()
    if not rows.isfinite().all():
        raise CheckpointError("a weight is infinite or not a number; it cannot be quantised: set quant_config to None")
    return F.pad(rows, (0, -rows.shape[1] % form.group)).unflatten(1, (-1, form.group))


def _numbers(groups: torch.Tensor, scales: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """The nearest whole numbers of steps, as floats. A scale of zero makes zeros."""
    steps = scales.float().unsqueeze(2)
    return torch.where(steps != 0, groups / steps, 0.0).round_().clamp_(low, high)


def _finish(
    rows: torch.Tensor, form: BlockFormat, groups: torch.Tensor, scales: torch.Tensor, low: int, high: int
) -> BlockRows:
    if not scales.isfinite().all():
        raise CheckpointError("a weight is too large for a scale in float16: set quant_config to None")
    numbers = _numbers(groups, scales, low, high).add_(form.offset).to(torch.uint8)
    return BlockRows(form, numbers.flatten(1)[:, : rows.shape[1]].contiguous(), scales)
