"""Norms on the native core. Formulas are in ``ops/reference/norm.py``."""

from __future__ import annotations

import torch

from .core import DTYPES, native
from .rows import as_rows
from .workspace import empty

_core = native()


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """``reference.norm.rms_norm``."""
    return _rms_norm(x, weight, eps, False)


def rms_norm_plus_one(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """``reference.norm.rms_norm_plus_one``."""
    return _rms_norm(x, weight, eps, True)


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """``reference.norm.layer_norm``."""
    return _layer_norm(x, weight, bias, eps, 0.0)


def layer_norm_plus_one(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """``reference.norm.layer_norm_plus_one``."""
    return _layer_norm(x, weight, bias, eps, 1.0)


def _layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, plus: float) -> torch.Tensor:
    x = as_rows(x)
    y = empty(tuple(x.shape), x.dtype)
    _core.layer_norm(
        x.data_ptr(), weight.data_ptr(), bias.data_ptr(), y.data_ptr(), DTYPES[x.dtype], x.shape[0], x.shape[1],
        x.stride(0), eps, plus,
    )  # fmt: skip
    return y


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, plus_one: bool) -> torch.Tensor:
    """x: [T, size], or [T, heads, size] with one weight for all heads or one for each."""
    x = as_rows(x)
    size = x.shape[-1]
    heads = x.shape[1] if x.dim() == 3 else 1
    y = empty(tuple(x.shape), x.dtype)
    _core.rms_norm(
        x.data_ptr(), weight.data_ptr(), y.data_ptr(), DTYPES[x.dtype], x.shape[0], size, heads, x.stride(0),
        weight.numel() // size, eps, plus_one,
    )  # fmt: skip
    return y
