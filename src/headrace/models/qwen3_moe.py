"""Qwen3 with experts: 30B-A3B, 235B-A22B."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.core.errors import ModelError
from headrace.layers.attention import AttentionShape, SelfAttention
from headrace.layers.base import BuildContext, Layer
from headrace.layers.block import PreNormBlock
from headrace.layers.mlp import GatedMLP
from headrace.layers.moe import Experts, MixtureOfExperts, SoftmaxRouter, separate_experts
from headrace.layers.norm import HeadNorm
from headrace.ops.moe import ExpertsShape

from .config import Fields, narrower, read_decoder, read_experts
from .rope_config import read_rope
from .stacked import StackedDecoder


class Qwen3MoeForCausalLM(StackedDecoder):
    """Qwen3's block; in layers that the configuration does not leave dense, the MLP is a mixture of experts."""

    def __init__(self, config: Mapping[str, Any], ctx: BuildContext) -> None:
        fields = Fields(config, "Qwen3MoeForCausalLM")
        fields.choice("hidden_act", ("silu",), "silu")
        c = read_decoder(fields, head_dim=None, tied=False)
        shape = AttentionShape(c.hidden_size, c.n_heads, c.n_kv_heads, c.head_dim)
        # Unlike dense Qwen3, every layer slides where one does.
        window = fields.integer("sliding_window", 4096) if fields.flag("use_sliding_window", False) else None
        sparse = sparse_layers(fields, c.n_layers)
        n_experts, k = read_experts(fields, ("num_experts", "num_local_experts"), default=128, default_k=8)
        experts = ExpertsShape(n_experts, c.hidden_size, fields.integer("moe_intermediate_size", 768), "silu_mul")
        normalised = fields.flag("norm_topk_prob", False)

        def mlp(name: str, index: int) -> Layer:
            if not sparse[index]:
                return GatedMLP(ctx, name, c.hidden_size, c.inner_size, "silu")
            router = SoftmaxRouter(ctx, f"{name}.gate", c.hidden_size, n_experts, k, normalised=normalised)
            return MixtureOfExperts(router, Experts(ctx, experts, separate_experts(f"{name}.experts", experts)))

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
                    window=narrower(window, c.max_positions),
                    bias=c.attention_bias,
                    out_bias=c.attention_bias,
                ),
                mlp(f"{name}.mlp", index),
            )

        super().__init__(ctx, c, read_rope(fields, head_dim=c.head_dim, max_positions=c.max_positions), block)


def sparse_layers(fields: Fields, n_layers: int) -> tuple[bool, ...]:
    """Every ``decoder_sparse_step``-th layer, but those in ``mlp_only_layers``."""
    step, dense = fields.integer("decoder_sparse_step", 1), fields.raw("mlp_only_layers", [])
    if not isinstance(dense, list) or not all(type(index) is int and 0 <= index < n_layers for index in dense):
        raise ModelError(
            f"{fields.where}: mlp_only_layers must list layers from 0 to {n_layers - 1} (num_hidden_layers - 1),"
            f" got {dense!r}"
        )
    return tuple((index + 1) % step == 0 and index not in dense for index in range(n_layers))
