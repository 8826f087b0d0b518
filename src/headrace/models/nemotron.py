"""Nemotron-4, Minitron, and conversions of Nemotron-3 8B."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.layers.attention import AttentionShape, SelfAttention
from headrace.layers.base import BuildContext
from headrace.layers.block import PreNormBlock
from headrace.layers.mlp import SquaredReLUMLP
from headrace.layers.norm import LayerNormPlusOne, NoHeadNorm

from .config import Fields, read_decoder
from .rope_config import read_rope
from .stacked import StackedDecoder


class NemotronForCausalLM(StackedDecoder):
    """Llama's block with layer norms of the 1 + w kind, squared ReLU without a gate, and half of each head rotated."""

    def __init__(self, config: Mapping[str, Any], ctx: BuildContext) -> None:
        fields = Fields(config, "NemotronForCausalLM")
        fields.choice("hidden_act", ("relu2",), "relu2")
        mlp_bias = fields.flag("mlp_bias", False)
        c = read_decoder(fields, head_dim=None, tied=False, eps=1e-5, eps_name="norm_eps")
        shape = AttentionShape(c.hidden_size, c.n_heads, c.n_kv_heads, c.head_dim)
        rope = read_rope(fields, head_dim=c.head_dim, max_positions=c.max_positions, partial=0.5)

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
                    NoHeadNorm(),
                    scale=c.head_dim**-0.5,
                    bias=c.attention_bias,
                    out_bias=c.attention_bias,
                ),
                SquaredReLUMLP(ctx, f"{name}.mlp", c.hidden_size, c.inner_size, bias=mlp_bias),
                norm=LayerNormPlusOne,
            )

        super().__init__(ctx, c, rope, block, norm=LayerNormPlusOne)
