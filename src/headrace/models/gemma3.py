"""Gemma 3, the text model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from headrace.layers.attention import AttentionShape, SelfAttention
from headrace.layers.base import BuildContext
from headrace.layers.block import SandwichBlock
from headrace.layers.embedding import Embedding, LMHead
from headrace.layers.mlp import GatedMLP
from headrace.layers.norm import HeadNorm, RMSNorm
from headrace.layers.rope import Rope, RopeSpec
from headrace.ops.batch import Batch

from .base import Decoder
from .config import FULL, SLIDING, Fields, read_decoder, read_windows
from .rope_config import rope_from


class Gemma3ForCausalLM(Decoder):
    """Sandwich norms of the 1 + w kind, GeGLU, sliding and full layers that each have a rope of their own."""

    def __init__(self, config: Mapping[str, Any], ctx: BuildContext) -> None:
        fields = Fields(config, "Gemma3ForCausalLM")
        activation = fields.choice("hidden_activation", ("gelu_pytorch_tanh",), "gelu_pytorch_tanh")
        fields.refuse("use_bidirectional_attention", "that is an encoder, not a generator")
        fields.refuse("attn_logit_softcapping", "attention scores are not capped in Gemma 3")
        c = read_decoder(fields, head_dim=256, tied=True)
        super().__init__(c.vocab_size, c.max_positions, tied=c.tied)
        shape = AttentionShape(c.hidden_size, c.n_heads, c.n_kv_heads, c.head_dim)
        scale = fields.number("query_pre_attn_scalar", 256.0) ** -0.5
        self.embed = Embedding(ctx, "model.embed_tokens", c.vocab_size, c.hidden_size)
        self._scale, self._embed_scale = ctx.ops.scale, c.hidden_size**0.5
        full, sliding = _ropes(fields, c.head_dim, c.max_positions)
        self.full_rope, self.sliding_rope = Rope(ctx, full, c.head_dim), Rope(ctx, sliding, c.head_dim)
        windows = _windows(fields, c.n_layers)
        self._slides = tuple(window is not None for window in windows)
        self.layers = tuple(
            SandwichBlock(
                ctx,
                name,
                c.hidden_size,
                c.eps,
                SelfAttention(
                    ctx,
                    f"{name}.self_attn",
                    shape,
                    HeadNorm(ctx, f"{name}.self_attn", c.n_heads, c.n_kv_heads, c.head_dim, c.eps, plus_one=True),
                    scale=scale,
                    window=window,
                    bias=c.attention_bias,
                    out_bias=c.attention_bias,
                ),
                GatedMLP(ctx, f"{name}.mlp", c.hidden_size, c.inner_size, activation),
            )
            for name, window in ((f"model.layers.{i}", window) for i, window in enumerate(windows))
        )
        self.norm = RMSNorm(ctx, "model.norm", c.hidden_size, c.eps, plus_one=True)
        cap = fields.number("final_logit_softcapping", None)
        self.head = LMHead(ctx, "lm_head", c.vocab_size, c.hidden_size, tied=self.embed if c.tied else None, cap=cap)

    def forward(self, batch: Batch) -> torch.Tensor:
        x = self._scale(self.embed(batch.input_ids), self._embed_scale)
        full, sliding = self.full_rope(batch.positions), self.sliding_rope(batch.positions)
        for layer, slides in zip(self.layers, self._slides, strict=True):
            x = layer(x, sliding if slides else full, batch)
        return self.norm(x)


def _windows(fields: Fields, n_layers: int) -> tuple[int | None, ...]:
    """Every ``sliding_window_pattern``-th layer is full, the others slide."""
    pattern = fields.integer("sliding_window_pattern", 6)
    kinds = [SLIDING if (i + 1) % pattern else FULL for i in range(n_layers)]
    return read_windows(fields, n_layers, kinds, fields.integer("sliding_window", 4096))


def _ropes(fields: Fields, head_dim: int, max_positions: int) -> tuple[RopeSpec, RopeSpec]:
    """The ropes of full and of sliding layers. The old dialect's ``rope_scaling`` is about the full ones alone."""
    nested = Fields(fields.mapping("rope_parameters"), f"{fields.where}, rope_parameters")
    full = nested.mapping(FULL) or fields.mapping("rope_scaling")
    sliding = {"rope_theta": fields.number("rope_local_base_freq", 10000.0), **nested.mapping(SLIDING)}
    return (
        rope_from(fields, full, head_dim=head_dim, max_positions=max_positions, theta=1e6),
        rope_from(fields, sliding, head_dim=head_dim, max_positions=max_positions, theta=1e4),
    )
