"""Linear maps."""

from __future__ import annotations

import torch

from .base import BuildContext, Layer, Parameter, stacked


class Linear(Layer):
    """y = x Wᵀ + b. Several checkpoint tensors of the same input are one product: q, k and v; gate and up.

    Args:
        names: paths of the checkpoint's modules, without ``.weight``; their outputs follow one another in y.
        n_in: width of x.
        n_outs: width of each module's output.
        bias: whether every module has a ``.bias``.
    """

    def __init__(
        self, ctx: BuildContext, names: tuple[str, ...], n_in: int, n_outs: tuple[int, ...], *, bias: bool = False
    ) -> None:
        n_out = sum(n_outs)
        self._linear = ctx.ops.linear
        self.weight = Parameter(ctx, (n_out, n_in), stacked(tuple(f"{n}.weight" for n in names), n_outs, n_in))
        bias_sources = stacked(tuple(f"{n}.bias" for n in names), n_outs)
        self.bias: Parameter | NoBias = Parameter(ctx, (n_out,), bias_sources) if bias else NO_BIAS

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, n_in] -> [T, n_out]."""
        return self._linear(x, self.weight.data, self.bias.data)


class NoBias:
    """Stands for a bias that is not there."""

    data = None


NO_BIAS = NoBias()
