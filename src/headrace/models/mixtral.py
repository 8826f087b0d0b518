"""Mixtral 8x7B and 8x22B."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.layers.attention import AttentionShape, SelfAttention
from headrace.layers.base import BuildContext
from headrace.layers.block import PreNormBlock
from headrace.layers.moe import Experts, MixtureOfExperts, SoftmaxRouter, separate_experts
from headrace.layers.norm import NoHeadNorm
from headrace.ops.moe import ExpertsShape

from .config import Fields, narrower, read_decoder, read_experts
from .rope_config import read_rope
from .stacked import StackedDecoder


class MixtralForCausalLM(StackedDecoder):
    """Llama's block with a mixture of experts in every layer."""

    def __init__(self, config: Mapping[str, Any], ctx: BuildContext) -> None:
        fields = Fields(config, "MixtralForCausalLM")
        fields.choice("hidden_act", ("silu",), "silu")
        c = read_decoder(fields, head_dim=None, tied=False, eps=1e-5)
        shape = AttentionShape(c.hidden_size, c.n_heads, c.n_kv_heads, c.head_dim)
        window = narrower(fields.integer("sliding_window", None), c.max_positions)
        n_experts, k = read_experts(fields, ("num_local_experts",), default=8, default_k=2)

        def mixture(name: str) -> MixtureOfExperts:
            experts = ExpertsShape(n_experts, c.hidden_size, c.inner_size, "silu_mul")
            sources = separate_experts(f"{name}.experts", experts, up=("w1", "w3"), down="w2")
            router = SoftmaxRouter(ctx, f"{name}.gate", c.hidden_size, n_experts, k, normalised=True)
            return MixtureOfExperts(router, Experts(ctx, experts, sources))

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
                ),
                mixture(f"{name}.block_sparse_moe"),
            )

        rope = read_rope(fields, head_dim=c.head_dim, max_positions=c.max_positions, theta=1e6)
        super().__init__(ctx, c, rope, block)
