"""Routers, and experts one after another."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from headrace.ops.moe import ExpertsShape, Routing
from headrace.ops.storage import PLAIN, Storage
from headrace.quant.formats import BlockFormat

from .activation import clamped_glu, gelu_tanh_mul, relu_squared, silu_mul
from .block_linear import PlainBlocks, ReferenceBlockLinear
from .linear import LINEAR

ACTIVATIONS = {
    "silu_mul": silu_mul,
    "gelu_tanh_mul": gelu_tanh_mul,
    "relu_squared": relu_squared,
    "clamped_glu": clamped_glu,
}


def softmax_top_k(logits: torch.Tensor, k: int, *, normalised: bool) -> Routing:
    """The k largest logits of [T, E] fp32; weights are their softmax over all experts, or over the chosen ones alone.

    Softmax over the chosen is softmax over all, divided by the sum of the chosen (Mixtral, arXiv 2401.04088).
    """
    ids = _largest(logits, k)
    chosen = logits.gather(1, ids)
    weights = chosen.softmax(1) if normalised else logits.softmax(1).gather(1, ids)
    return Routing(ids.int(), weights)


def sigmoid_top_k(
    logits: torch.Tensor,
    correction: torch.Tensor | None,
    k: int,
    *,
    normalised: bool = False,
    n_groups: int = 1,
    top_groups: int = 1,
    factor: float = 1.0,
) -> Routing:
    """The k best experts of [T, E] fp32; weights are sigmoids of their logits (DeepSeek-V3, arXiv 2412.19437).

    Args:
        correction: [E] fp32, added to the sigmoids for the choice alone; None: logits choose (Llama 4).
        normalised: weights are divided by their sum + 1e-20.
        n_groups, top_groups: experts stand in equal groups, and those of the ``top_groups`` with the largest sum of
            their two best scores can be chosen.
        factor: of the weights, at last.
    """
    chances = logits.sigmoid()
    scores = logits if correction is None else chances + correction
    if top_groups < n_groups:
        groups = scores.unflatten(1, (n_groups, -1))
        kept = _largest(groups.topk(2, -1).values.sum(-1), top_groups)
        open_groups = torch.zeros(groups.shape[:2], dtype=torch.bool, device=logits.device).scatter_(1, kept, True)
        scores = groups.masked_fill(~open_groups[..., None], -torch.inf).flatten(1)
    ids = _largest(scores, k)
    weights = chances.gather(1, ids)
    if normalised:
        weights = weights / (weights.sum(1, keepdim=True) + 1e-20)
    return Routing(ids.int(), weights * factor)


def _largest(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Indices [T, k] of the k largest, the lower index first among equals."""
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :k]


class ReferenceExperts:
    """``ExpertOps`` over plain tensors."""

    def storage(self, n_experts: int, form: BlockFormat | None = None) -> Storage:
        return PLAIN if form is None else ReferenceBlockLinear(form)

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
        activation = ACTIVATIONS[shape.activation]
        if shape.activation == "clamped_glu":
            activation = partial(activation, limit=shape.limit)
        first = _Products(gate_up, gate_up_bias, shape.gate_up)
        second = _Products(down, down_bias, shape.size, shape.segments)
        outputs = torch.zeros((*routing.ids.shape, shape.size), dtype=torch.float32, device=x.device)
        for expert in routing.ids.unique().tolist():
            rows, slots = torch.nonzero(routing.ids == expert, as_tuple=True)
            weights = routing.weights[rows, slots, None]
            taken = (x[rows] * weights).to(x.dtype) if shape.scaled_input else x[rows]
            output = second(activation(first(taken, expert, x.dtype)), expert, torch.float32)
            outputs[rows, slots] = output if shape.scaled_input else output * weights
        return outputs.sum(1).to(x.dtype)


class _Products:
    """The product with each expert's part of a weight."""

    def __init__(self, weight: Any, bias: torch.Tensor | None, height: int, segments: int = 1) -> None:
        self._weight, self._bias, self._height, self._segments = weight, bias, height, segments

    def __call__(self, x: torch.Tensor, expert: int, dtype: torch.dtype) -> torch.Tensor:
        rows = slice(expert * self._height, (expert + 1) * self._height)
        bias = None if self._bias is None else self._bias[expert]
        if isinstance(self._weight, torch.Tensor):
            return LINEAR.apply(x, self._weight[rows], bias, dtype=dtype)
        blocks = self._weight.rows[rows]
        ops = ReferenceBlockLinear(blocks.format)
        return ops.apply(x, PlainBlocks(blocks, x.dtype), bias, segments=self._segments, dtype=dtype)


EXPERTS = ReferenceExperts()
