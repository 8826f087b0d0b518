"""What most decoders are: an embedding, one rope for all layers, a stack of blocks, a final norm and a head."""

from __future__ import annotations

from collections.abc import Callable

import torch

from headrace.layers.base import BuildContext, Layer
from headrace.layers.embedding import Embedding, LMHead
from headrace.layers.norm import RMSNorm
from headrace.layers.rope import Rope, RopeSpec
from headrace.ops.batch import Batch

from .base import Decoder
from .config import DecoderConfig

MakeBlock = Callable[[str, int], Layer]
"""Makes the block of a layer from its name in the checkpoint and its index."""


class StackedDecoder(Decoder):
    """A model file says what its block is made of; tensor names outside the blocks are those of Llama.

    Args:
        prefix: of all names, where the decoder is a part of a larger model.
    """

    def __init__(
        self,
        ctx: BuildContext,
        config: DecoderConfig,
        rope: RopeSpec,
        make_block: MakeBlock,
        norm: Callable[[BuildContext, str, int, float], Layer] = RMSNorm,
        prefix: str = "",
    ) -> None:
        super().__init__(config.vocab_size, config.max_positions, tied=config.tied)
        size = config.hidden_size
        self.embed = Embedding(ctx, f"{prefix}model.embed_tokens", config.vocab_size, size)
        self.rope = Rope(ctx, rope, config.head_dim)
        self.layers = tuple(make_block(f"{prefix}model.layers.{i}", i) for i in range(config.n_layers))
        self.norm = norm(ctx, f"{prefix}model.norm", size, config.eps)
        self.head = LMHead(ctx, f"{prefix}lm_head", config.vocab_size, size, tied=self.embed if config.tied else None)

    def forward(self, batch: Batch) -> torch.Tensor:
        x = self.embed(batch.input_ids)
        angles = self.rope(batch.positions)
        for layer in self.layers:
            x = layer(x, angles, batch)
        return self.norm(x)
