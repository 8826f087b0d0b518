"""MTP layers (multi-token prediction, arXiv 2412.19437): each guesses one token further than what it reads was for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from headrace.layers.base import BuildContext, Layer
from headrace.layers.norm import RMSNorm
from headrace.layers.rope import Rope
from headrace.layers.two_inputs import TwoInputs
from headrace.ops.batch import Batch

from .taps import Tap


@dataclass(frozen=True, slots=True)
class MtpNames:
    """What a layer's tensors are called, without ``.weight``."""

    embedding_norm: str
    state_norm: str
    join: str
    norm: str
    below: tuple[str, ...]
    """Beginnings of all names of the layer, those of its blocks too."""


class MtpLayer(Layer):
    """norm(blocks(W [norm e | norm h])), of a token's embedding e and the state h before it.

    Args:
        blocks: (x, angles, batch) -> x, one after another.
        rope: None for attention that knows no positions.
        norm: which norm, built from (ctx, name, size, eps).
    """

    def __init__(
        self,
        ctx: BuildContext,
        names: MtpNames,
        hidden_size: int,
        eps: float,
        blocks: tuple[Layer, ...],
        *,
        rope: Rope | None,
        norm: Callable[[BuildContext, str, int, float], Layer] = RMSNorm,
    ) -> None:
        self.embedding_norm = norm(ctx, names.embedding_norm, hidden_size, eps)
        self.state_norm = norm(ctx, names.state_norm, hidden_size, eps)
        self.join = TwoInputs(ctx, (names.join,), hidden_size, (hidden_size,))
        self.rope = rope
        self.blocks = blocks
        self.norm = Tap(norm(ctx, names.norm, hidden_size, eps))
        self.names = names
        self.hidden_size = hidden_size

    def __call__(self, e: torch.Tensor, h: torch.Tensor, batch: Batch) -> torch.Tensor:
        """[T, hidden] twice -> [T, hidden]: what the head reads, and what the next guess goes on from."""
        x = self.join((self.embedding_norm(e), self.state_norm(h)))
        angles = None if self.rope is None else self.rope(batch.positions)
        for block in self.blocks:
            x = block(x, angles, batch)  # type: ignore[operator]
        return self.norm(x)
