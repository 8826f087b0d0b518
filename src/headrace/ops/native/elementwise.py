"""What is computed value by value, on the native core, in fp32 with one rounding. Formulas: ``ops/reference``."""

from __future__ import annotations

import torch

from .core import DTYPES, native
from .rows import as_rows
from .workspace import empty

_core = native()
# As the core numbers them (native/kernels/elementwise_args.h).
_SILU_MUL, _GELU_TANH_MUL, _RELU_SQUARED, _SOFT_CAP, _ADD, _SCALE, _CLAMPED_GLU, _GELU = range(8)
_SIGMOID_MUL, _ROW_SIGMOID_MUL, _ADD_SCALED = 8, 9, 10
KINDS = {
    "silu_mul": _SILU_MUL,
    "gelu_tanh_mul": _GELU_TANH_MUL,
    "relu_squared": _RELU_SQUARED,
    "clamped_glu": _CLAMPED_GLU,
}
"""Activations by the names of their operators."""


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """``reference.activation.silu_mul``."""
    return _run(_SILU_MUL, gate_up, gate_up.shape[1] // 2)


def gelu_tanh_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """``reference.activation.gelu_tanh_mul``."""
    return _run(_GELU_TANH_MUL, gate_up, gate_up.shape[1] // 2)


def gelu(x: torch.Tensor) -> torch.Tensor:
    """``reference.activation.gelu``."""
    return _run(_GELU, x, x.shape[1])


def relu_squared(x: torch.Tensor) -> torch.Tensor:
    """``reference.activation.relu_squared``."""
    return _run(_RELU_SQUARED, x, x.shape[1])


def soft_cap(x: torch.Tensor, cap: float) -> torch.Tensor:
    """``reference.activation.soft_cap``."""
    return _run(_SOFT_CAP, x, x.shape[1], c=cap)


def add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """``reference.activation.add``."""
    return _run(_ADD, x, x.shape[1], as_rows(y))


def add_scaled(x: torch.Tensor, y: torch.Tensor, factor: float) -> torch.Tensor:
    """``reference.activation.add_scaled``."""
    return _run(_ADD_SCALED, x, x.shape[1], as_rows(y), factor)


def scale(x: torch.Tensor, factor: float) -> torch.Tensor:
    """``reference.activation.scale``."""
    return _run(_SCALE, x, x.shape[1], c=factor)


def clamped_glu(gate_up: torch.Tensor, limit: float) -> torch.Tensor:
    """``reference.activation.clamped_glu``."""
    return _run(_CLAMPED_GLU, gate_up, gate_up.shape[1] // 2, c=limit)


def sigmoid_mul(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """``reference.activation.sigmoid_mul``."""
    return _run(_ROW_SIGMOID_MUL if gate.shape[1] == 1 else _SIGMOID_MUL, x, x.shape[1], as_rows(gate))


def position_scale(x: torch.Tensor, positions: torch.Tensor, floor_scale: float, attn_scale: float) -> torch.Tensor:
    """``reference.activation.position_scale``."""
    x, positions = as_rows(x), positions.contiguous()
    y = empty(tuple(x.shape), x.dtype)
    size = x.shape[1] * x.shape[2]
    _core.position_scale(
        x.data_ptr(), positions.data_ptr(), y.data_ptr(), DTYPES[x.dtype], x.shape[0], size, x.stride(0), floor_scale,
        attn_scale,
    )  # fmt: skip
    return y


def _run(kind: int, x: torch.Tensor, size: int, other: torch.Tensor | None = None, c: float = 0.0) -> torch.Tensor:
    x = as_rows(x)
    y = empty((x.shape[0], size), x.dtype)
    _core.elementwise(
        kind, x.data_ptr(), 0 if other is None else other.data_ptr(), y.data_ptr(), DTYPES[x.dtype], x.shape[0], size,
        x.stride(0), 0 if other is None else other.stride(0), size, c,
    )  # fmt: skip
    return y
