"""Rounding of weights on the native core, on the thread of the caller. Formulas: ``ops/reference/round_blocks.py``."""

from __future__ import annotations

import torch

from headrace.core.errors import CheckpointError
from headrace.ops.reference.round_blocks import NOT_FINITE, TOO_LARGE
from headrace.quant.formats import BlockFormat, BlockRows

from .core import DTYPES, native

_core = native()
_NOT_FINITE, _TOO_LARGE = 1, 2
"""``RoundingFault`` in native/kernels/round_blocks_args.h."""


def round_blocks(rows: torch.Tensor, form: BlockFormat) -> BlockRows:
    """``reference.round_blocks``, to the bit."""
    rows = (rows if rows.dtype in DTYPES else rows.float()).contiguous()
    n, n_in = rows.shape
    numbers = torch.empty(n, n_in, dtype=torch.uint8)
    scales = torch.empty(n, form.groups(n_in), dtype=torch.float16)
    faults = _core.round_blocks(
        rows.data_ptr(), numbers.data_ptr(), scales.data_ptr(), DTYPES[rows.dtype], n, n_in, form.bits
    )
    if faults & _NOT_FINITE:
        raise CheckpointError(NOT_FINITE)
    if faults & _TOO_LARGE:
        raise CheckpointError(TOO_LARGE)
    return BlockRows(form, numbers, scales)
