"""The contract of mixtures of experts: where rows go, the memory of experts' weights, and what experts make of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from headrace.quant.formats import BlockFormat

from .storage import Storage


@dataclass(frozen=True, slots=True)
class Routing:
    """The experts of each row, slot by slot, the better first; of equals the one with the lower number.

    Ids are valid and differ within a row, whatever its logits are, NaN among them.
    """

    ids: torch.Tensor
    """[T, k] int32."""
    weights: torch.Tensor
    """[T, k] fp32."""


@dataclass(frozen=True, slots=True)
class ExpertsShape:
    """What is alike in all experts of a layer."""

    n_experts: int
    size: int
    """Width of x and of the result."""
    inner: int
    """Width between the two products."""
    activation: str
    """silu_mul, gelu_tanh_mul or clamped_glu, whose first product is twice as wide as ``inner``, gate first; or
    relu_squared, without a gate."""
    limit: float = 0.0
    """Of clamped_glu."""
    segments: int = 1
    """Of the second product, as in ``LinearOps.apply``."""
    scaled_input: bool = False
    """A slot's weight is a factor of its expert's input, rounded to the dtype of x, and not of the output (Llama 4)."""

    @property
    def gate_up(self) -> int:
        """Outputs of the first product."""
        return self.inner if self.activation == "relu_squared" else 2 * self.inner


class ExpertOps(Protocol):
    """One implementation makes the weights of experts, fills and reads them."""

    def storage(self, n_experts: int, form: BlockFormat | None = None) -> Storage:
        """For a parameter [n_experts * n_out, n_in]: the weights of all experts, one below another.

        Args:
            form: of weights in blocks; they are filled with ``BlockRows``. None: floats.
        """
        ...

    def apply(
        self,
        x: torch.Tensor,
        routing: Routing,
        shape: ExpertsShape,
        gate_up: Any,
        down: Any,
        gate_up_bias: torch.Tensor | None = None,
        down_bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The sum over a row's slots, in their order, of weight * down[e](act(gate_up[e](x))), e the slot's expert.

        Each product is that of ``LinearOps.apply``, or of ``BlockLinearOps.apply`` for weights in blocks. The outputs
        of the second are kept in fp32 and added in fp32, and the sum is rounded once. A row's result depends on that
        row alone.

        Args:
            x: [T, size] in the dtype of the weights; rows may be any distance apart.
            gate_up, down: what ``storage`` made of [n_experts * shape.gate_up, size] and [n_experts * size, inner].
            gate_up_bias, down_bias: [n_experts, shape.gate_up] and [n_experts, size].

        Returns:
            [T, size].
        """
        ...
