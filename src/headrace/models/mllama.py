"""Llama 3.2 Vision: a decoder some of whose layers look at pictures instead of at the text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from headrace.core.errors import ModelError
from headrace.core.media import MediaItem
from headrace.layers.attention import AttentionShape, SelfAttention
from headrace.layers.base import BuildContext, Layer
from headrace.layers.block import PreNormBlock
from headrace.layers.cross import CrossBlock
from headrace.layers.embedding import Embedding, LMHead
from headrace.layers.mlp import GatedMLP
from headrace.layers.norm import NoHeadNorm, RMSNorm
from headrace.layers.rope import Rope
from headrace.ops.batch import Batch
from headrace.ops.tensors import to_tensor

from .base import Decoder
from .config import DecoderConfig, Fields, read_decoder
from .mllama_vision import MllamaVision
from .rope_config import read_rope

_EXTRA_ROWS = 8
"""Of the embedding beyond the vocabulary; the first stands for a picture."""


class MllamaForConditionalGeneration(Decoder):
    """Llama 3 with gated cross-attention in some layers, and a vision tower of tiles.

    A row that sees no picture skips the cross-attention layers: all rows of a prompt without one, and those before the
    first, as in the original.
    """

    def __init__(self, config: Mapping[str, Any], ctx: BuildContext) -> None:
        outer = Fields(config, "MllamaForConditionalGeneration")
        outer.refuse("quantization_config", "only plain float weights are read here")
        fields = Fields(outer.mapping("text_config"), "MllamaForConditionalGeneration, text_config")
        fields.choice("hidden_act", ("silu",), "silu")
        c = read_decoder(fields, head_dim=None, tied=False, eps=1e-5)
        if c.tied:
            raise ModelError(
                f"{fields.where}: tie_word_embeddings = true, but the embedding has more rows than the head"
            )
        super().__init__(c.vocab_size, c.max_positions, tied=False)
        cross = fields.raw("cross_attention_layers", [3, 8, 13, 18, 23, 28, 33, 38])
        if not isinstance(cross, list) or not set(cross) <= set(range(c.n_layers)):
            raise ModelError(
                f"{fields.where}: cross_attention_layers must list layers below num_hidden_layers = {c.n_layers},"
                f" got {cross!r}"
            )
        prefix = "language_model.model"
        self.embed = Embedding(ctx, f"{prefix}.embed_tokens", c.vocab_size + _EXTRA_ROWS, c.hidden_size)
        rope = read_rope(fields, head_dim=c.head_dim, max_positions=c.max_positions, theta=500_000.0)
        self.rope = Rope(ctx, rope, c.head_dim)
        self.layers = tuple(_block(ctx, f"{prefix}.layers.{i}", c, i in cross) for i in range(c.n_layers))
        self.norm = RMSNorm(ctx, f"{prefix}.norm", c.hidden_size, c.eps)
        self.head = LMHead(ctx, "language_model.lm_head", c.vocab_size, c.hidden_size)
        vision = Fields(outer.mapping("vision_config"), "MllamaForConditionalGeneration, vision_config")
        self.vision = MllamaVision(ctx, vision, c.hidden_size)

    def forward(self, batch: Batch) -> torch.Tensor:
        x = self.embed(batch.input_ids)
        angles = self.rope(batch.positions)
        for layer in self.layers:
            x = layer(x, angles, batch)
        return self.norm(x)

    def encode(self, item: MediaItem) -> torch.Tensor:
        """[n_states, hidden]: the patches of its tiles."""
        pixels, mean, std = (to_tensor(item.tensors[name]) for name in ("pixels", "mean", "std"))
        tiles = (pixels.float() * (1.0 / 255.0) - mean) / std
        return self.vision(tiles.permute(0, 3, 1, 2).contiguous(), int(to_tensor(item.tensors["aspect_ratio_id"])))


def _block(ctx: BuildContext, name: str, c: DecoderConfig, is_cross: bool) -> Layer:
    shape = AttentionShape(c.hidden_size, c.n_heads, c.n_kv_heads, c.head_dim)
    mlp = GatedMLP(ctx, f"{name}.mlp", c.hidden_size, c.inner_size, "silu")
    if is_cross:
        return CrossBlock(ctx, name, shape, c.eps, mlp)
    attention = SelfAttention(ctx, f"{name}.self_attn", shape, NoHeadNorm(), scale=c.head_dim**-0.5)
    return PreNormBlock(ctx, name, c.hidden_size, c.eps, attention, mlp)
