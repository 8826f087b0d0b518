"""Rotary position embedding on the native core: HALF layout, as ``ops/reference/rope.py``."""

from __future__ import annotations

import torch

from .core import DTYPES, native
from .rows import as_rows
from .workspace import empty

_core = native()


def rope_angles(positions: torch.Tensor, inv_freq: torch.Tensor, factor: float) -> torch.Tensor:
    """[T, 2, r / 2] fp32: cosines, then sines, of position * inv_freq in fp32, times ``factor``."""
    half = inv_freq.shape[0]
    angles = empty((positions.shape[0], 2, half), torch.float32)
    _core.rope_angles(
        positions.data_ptr(), inv_freq.data_ptr(), angles.data_ptr(), positions.shape[0], half, factor
    )  # fmt: skip
    return angles


def rope(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """``reference.rope.rope``, with the angles of this module."""
    x = as_rows(x)
    n_rows, heads, head_dim = x.shape
    y = empty((n_rows, heads, head_dim), x.dtype)
    _core.rope(
        x.data_ptr(), angles.data_ptr(), y.data_ptr(), DTYPES[x.dtype], n_rows, x.stride(0), heads, head_dim,
        angles.shape[2],
    )  # fmt: skip
    return y
