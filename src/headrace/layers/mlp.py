"""Feed-forward blocks."""

from __future__ import annotations

import torch

from headrace.core.errors import ModelError

from .base import BuildContext, Layer
from .linear import Linear


class GatedMLP(Layer):
    """down(act(gate x) * up x): SwiGLU for ``silu``, GeGLU for ``gelu_pytorch_tanh`` (arXiv 2002.05202).

    Args:
        name: path of the checkpoint's module (``...mlp``).
        fused: the checkpoint has gate and up as one tensor, ``gate_up_proj``, gate first.

    Raises ModelError for another activation.
    """

    def __init__(
        self,
        ctx: BuildContext,
        name: str,
        hidden_size: int,
        inner_size: int,
        activation: str,
        *,
        bias: bool = False,
        fused: bool = False,
    ) -> None:
        known = {"silu": ctx.ops.silu_mul, "gelu_pytorch_tanh": ctx.ops.gelu_tanh_mul}
        if activation not in known:
            raise ModelError(f"{name}: activation {activation!r} is not known; there are {', '.join(known)}")
        self._act_mul = known[activation]
        names = ("gate_up_proj",) if fused else ("gate_proj", "up_proj")
        sizes = (2 * inner_size,) if fused else (inner_size, inner_size)
        self.gate_up = Linear(ctx, tuple(f"{name}.{part}" for part in names), hidden_size, sizes, bias=bias)
        self.down = Linear(ctx, (f"{name}.down_proj",), inner_size, (hidden_size,), bias=bias, parts=inner_size)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]."""
        return self.down(self._act_mul(self.gate_up(x)))


class SquaredReLUMLP(Layer):
    """down(max(up x, 0)^2), without a gate (arXiv 2109.08668)."""

    def __init__(self, ctx: BuildContext, name: str, hidden_size: int, inner_size: int, *, bias: bool = False) -> None:
        self._act = ctx.ops.relu_squared
        self.up = Linear(ctx, (f"{name}.up_proj",), hidden_size, (inner_size,), bias=bias)
        self.down = Linear(ctx, (f"{name}.down_proj",), inner_size, (hidden_size,), bias=bias, parts=inner_size)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]."""
        return self.down(self._act(self.up(x)))
