"""Norms on the native core. Formulas are in ``ops/reference/norm.py``."""

from __future__ import annotations

import torch

from .core import DTYPES, native

_run = native().rms_norm


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """``reference.norm.rms_norm``."""
    return _rms_norm(x, weight, eps, False)


def rms_norm_plus_one(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """``reference.norm.rms_norm_plus_one``."""
    return _rms_norm(x, weight, eps, True)


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, plus_one: bool) -> torch.Tensor:
    size = x.shape[-1]
    heads = weight.numel() // size
    rows = x if x.is_contiguous() else x.contiguous()
    y = torch.empty_like(rows)
    _run(
        rows.data_ptr(), weight.data_ptr(), y.data_ptr(), DTYPES[x.dtype], rows.numel() // size,
        size, size, size, heads, eps, plus_one,
    )  # fmt: skip
    return y
