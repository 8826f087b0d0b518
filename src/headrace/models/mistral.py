"""Mistral 7B and what followed it in the same shape (Nemo, Small, Ministral 8B)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from headrace.layers.attention import AttentionShape, SelfAttention
from headrace.layers.base import BuildContext
from headrace.layers.block import PreNormBlock
from headrace.layers.embedding import Embedding, LMHead
from headrace.layers.mlp import GatedMLP
from headrace.layers.norm import NoHeadNorm, RMSNorm
from headrace.layers.rope import Rope
from headrace.ops.batch import Batch

from .base import Decoder
from .config import FULL, SLIDING, Fields, narrower, read_decoder, read_windows
from .rope_config import read_rope


class MistralForCausalLM(Decoder):
    """Llama's block. With a ``sliding_window`` every layer slides, unless ``layer_types`` names those that do."""

    def __init__(self, config: Mapping[str, Any], ctx: BuildContext) -> None:
        fields = Fields(config, "MistralForCausalLM")
        fields.choice("hidden_act", ("silu",), "silu")
        c = read_decoder(fields, head_dim=None, tied=False)
        super().__init__(c.vocab_size, c.max_positions, tied=c.tied)
        shape = AttentionShape(c.hidden_size, c.n_heads, c.n_kv_heads, c.head_dim)
        windows = _windows(fields, c.n_layers, c.max_positions)
        self.embed = Embedding(ctx, "model.embed_tokens", c.vocab_size, c.hidden_size)
        self.rope = Rope(ctx, read_rope(fields, head_dim=c.head_dim, max_positions=c.max_positions), c.head_dim)
        self.layers = tuple(
            PreNormBlock(
                ctx,
                name,
                c.hidden_size,
                c.eps,
                SelfAttention(
                    ctx,
                    f"{name}.self_attn",
                    shape,
                    NoHeadNorm(),
                    scale=c.head_dim**-0.5,
                    window=window,
                ),
                GatedMLP(ctx, f"{name}.mlp", c.hidden_size, c.inner_size, "silu"),
            )
            for name, window in ((f"model.layers.{i}", window) for i, window in enumerate(windows))
        )
        self.norm = RMSNorm(ctx, "model.norm", c.hidden_size, c.eps)
        self.head = LMHead(ctx, "lm_head", c.vocab_size, c.hidden_size, tied=self.embed if c.tied else None)

    def forward(self, batch: Batch) -> torch.Tensor:
        x = self.embed(batch.input_ids)
        angles = self.rope(batch.positions)
        for layer in self.layers:
            x = layer(x, angles, batch)
        return self.norm(x)


def _windows(fields: Fields, n_layers: int, max_positions: int) -> tuple[int | None, ...]:
    # Releases after the first say null and mean full attention; without the field it is the architecture's default.
    window = fields.integer("sliding_window", None if fields.has("sliding_window") else 4096)
    given = read_windows(fields, n_layers, [SLIDING if window else FULL] * n_layers, window)
    return tuple(narrower(window, max_positions) for window in given)
