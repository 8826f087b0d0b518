"""Qwen3 (dense)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.layers.attention import AttentionShape, SelfAttention
from headrace.layers.base import BuildContext
from headrace.layers.block import PreNormBlock
from headrace.layers.mlp import GatedMLP
from headrace.layers.norm import HeadNorm

from .config import Fields, read_decoder, read_upper_windows
from .rope_config import read_rope
from .stacked import StackedDecoder


class Qwen3ForCausalLM(StackedDecoder):
    """Llama's block with a norm on every query and key head. Layers from ``max_window_layers`` on may slide."""

    def __init__(self, config: Mapping[str, Any], ctx: BuildContext) -> None:
        fields = Fields(config, "Qwen3ForCausalLM")
        fields.choice("hidden_act", ("silu",), "silu")
        c = read_decoder(fields, head_dim=128, tied=False)
        shape = AttentionShape(c.hidden_size, c.n_heads, c.n_kv_heads, c.head_dim)
        windows = read_upper_windows(fields, c.n_layers)

        def block(name: str, index: int) -> PreNormBlock:
            return PreNormBlock(
                ctx,
                name,
                c.hidden_size,
                c.eps,
                SelfAttention(
                    ctx,
                    f"{name}.self_attn",
                    shape,
                    HeadNorm(ctx, f"{name}.self_attn", c.n_heads, c.n_kv_heads, c.head_dim, c.eps),
                    scale=c.head_dim**-0.5,
                    window=windows[index],
                    bias=c.attention_bias,
                    out_bias=c.attention_bias,
                ),
                GatedMLP(ctx, f"{name}.mlp", c.hidden_size, c.inner_size, "silu"),
            )

        super().__init__(ctx, c, read_rope(fields, head_dim=c.head_dim, max_positions=c.max_positions), block)
