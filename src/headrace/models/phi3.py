"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini."""

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
from headrace.layers.rope import Rope, RopeSpec
from headrace.ops.batch import Batch

from .base import Decoder
from .config import Fields, narrower, read_decoder
from .rope_config import rope_from


class Phi3ForCausalLM(Decoder):
    """Llama's block with fused tensors in the checkpoint, partial rotation, and long rope.

    Long rope has two lists of factors; which one counts is fixed when the engine is built (``layers.rope.Rope``).
    """

    def __init__(self, config: Mapping[str, Any], ctx: BuildContext) -> None:
        fields = Fields(config, "Phi3ForCausalLM")
        fields.choice("hidden_act", ("silu",), "silu")
        c = read_decoder(fields, head_dim=None, tied=False, eps=1e-5)
        super().__init__(c.vocab_size, c.max_positions, tied=c.tied)
        shape = AttentionShape(c.hidden_size, c.n_heads, c.n_kv_heads, c.head_dim)
        window = narrower(fields.integer("sliding_window", None), c.max_positions)
        self.embed = Embedding(ctx, "model.embed_tokens", c.vocab_size, c.hidden_size)
        self.rope = Rope(ctx, _rope(fields, c.head_dim, c.max_positions), c.head_dim)
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
                    fused=True,
                ),
                GatedMLP(ctx, f"{name}.mlp", c.hidden_size, c.inner_size, "silu", fused=True),
            )
            for name in (f"model.layers.{i}" for i in range(c.n_layers))
        )
        self.norm = RMSNorm(ctx, "model.norm", c.hidden_size, c.eps)
        self.head = LMHead(ctx, "lm_head", c.vocab_size, c.hidden_size, tied=self.embed if c.tied else None)

    def forward(self, batch: Batch) -> torch.Tensor:
        x = self.embed(batch.input_ids)
        angles = self.rope(batch.positions)
        for layer in self.layers:
            x = layer(x, angles, batch)
        return self.norm(x)


def _rope(fields: Fields, head_dim: int, max_positions: int) -> RopeSpec:
    """Older files call long rope ``su`` or ``yarn``; no Phi-3 has the rope that is called YaRN elsewhere."""
    parameters = fields.mapping("rope_parameters") or fields.mapping("rope_scaling")
    if (parameters.get("rope_type") or parameters.get("type")) in ("su", "yarn"):
        parameters = {**parameters, "rope_type": "longrope"}
    return rope_from(fields, parameters, head_dim=head_dim, max_positions=max_positions, theta=10000.0)
