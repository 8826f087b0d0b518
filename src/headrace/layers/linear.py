"""Linear maps."""

from __future__ import annotations

import torch

from .base import BuildContext, Layer, Parameter, Weight, stacked


class Linear(Layer):
    """y = x Wᵀ + b. Several checkpoint tensors of the same input are one product: q, k and v; gate and up.

    Args:
        names: paths of the checkpoint's modules, without ``.weight``; their outputs follow one another in y.
        n_in: width of x.
        n_outs: width of each module's output.
        bias: whether every module has a ``.bias``.
        parts: of how many equal parts of x the columns may be shared out to ranks, such as heads; 1: not at all.
        orders: for each module, where in its part of y each of its outputs goes; None: they stay in order.
    """

    def __init__(
        self,
        ctx: BuildContext,
        names: tuple[str, ...],
        n_in: int,
        n_outs: tuple[int, ...],
        *,
        bias: bool = False,
        parts: int = 1,
        orders: tuple[tuple[int, ...], ...] | None = None,
    ) -> None:
        n_out = sum(n_outs)
        self._segments = segments(n_in, parts)
        weight_sources = stacked(tuple(f"{n}.weight" for n in names), n_outs, n_in, orders=orders)
        self.weight = Weight(ctx, (n_out, n_in), weight_sources)
        self._ops = self.weight.ops
        bias_sources = stacked(tuple(f"{n}.bias" for n in names), n_outs, orders=orders)
        self.bias: Parameter | NoBias = Parameter(ctx, (n_out,), bias_sources) if bias else NO_BIAS
        self._adapted = ctx.adapters.of_map(names, n_in, n_outs, orders, ctx.dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, n_in] -> [T, n_out]."""
        return self._adapted(x, self._ops.apply(x, self.weight.data, self.bias.data, segments=self._segments))


def segments(n_in: int, parts: int) -> int:
    """In how many segments a sum over ``n_in`` values in ``parts`` parts runs: 4 where parts divide so, and no pair of
    neighbours is split (a product's smallest unit in bfloat16); else 1. The same at any number of ranks."""
    return 4 if parts % 4 == 0 and n_in % 8 == 0 else 1


class NoBias:
    """Stands for a bias that is not there."""

    data = None


NO_BIAS = NoBias()
