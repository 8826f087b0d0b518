"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.layers.attention import AttentionShape, SelfAttention
from headrace.layers.base import BuildContext
from headrace.layers.block import PreNormBlock
from headrace.layers.mlp import GatedMLP
from headrace.layers.norm import NoHeadNorm
from headrace.layers.rope import RopeSpec

from .config import Fields, narrower, read_decoder
from .rope_config import rope_from
from .stacked import StackedDecoder


class Phi3ForCausalLM(StackedDecoder):
    """Llama's block with fused tensors in the checkpoint, partial rotation, and long rope.

    Long rope has two lists of factors; which one counts is fixed when the engine is built (``layers.rope.Rope``).
    """

    def __init__(self, config: Mapping[str, Any], ctx: BuildContext) -> None:
        fields = Fields(config, "Phi3ForCausalLM")
        fields.choice("hidden_act", ("silu",), "silu")
        c = read_decoder(fields, head_dim=None, tied=False, eps=1e-5)
        shape = AttentionShape(c.hidden_size, c.n_heads, c.n_kv_heads, c.head_dim)
        window = narrower(fields.integer("sliding_window", None), c.max_positions)

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
                    window=window,
                    fused=True,
                ),
                GatedMLP(ctx, f"{name}.mlp", c.hidden_size, c.inner_size, "silu", fused=True),
            )

        super().__init__(ctx, c, _rope(fields, c.head_dim, c.max_positions), block)


def _rope(fields: Fields, head_dim: int, max_positions: int) -> RopeSpec:
    """Older files call long rope ``su`` or ``yarn``; no Phi-3 has the rope that is called YaRN elsewhere."""
    parameters = fields.mapping("rope_parameters") or fields.mapping("rope_scaling")
    if (parameters.get("rope_type") or parameters.get("type")) in ("su", "yarn"):
        parameters = {**parameters, "rope_type": "longrope"}
    return rope_from(fields, parameters, head_dim=head_dim, max_positions=max_positions, theta=10000.0)
