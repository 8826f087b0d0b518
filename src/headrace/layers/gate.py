"""Gates that a checkpoint holds one number for: how much of a branch is let through."""

from __future__ import annotations

import math
from functools import cached_property

from .base import BuildContext, Layer, Parameter, stacked


class TanhGate(Layer):
    """tanh of one number.

    Args:
        name: the checkpoint's tensor, [1].
    """

    def __init__(self, ctx: BuildContext, name: str) -> None:
        self.weight = Parameter(ctx, (1,), stacked((name,), (1,)))

    @cached_property
    def factor(self) -> float:
        """Once the parameter is there."""
        return math.tanh(self.weight.data.item())
