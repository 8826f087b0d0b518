"""GPT-OSS 20B and 120B."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.core.errors import ModelError
from headrace.layers.attention import AttentionShape, SelfAttention
from headrace.layers.base import BuildContext
from headrace.layers.block import PreNormBlock
from headrace.layers.moe import Experts, MixtureOfExperts, SoftmaxRouter, stacked_experts
from headrace.layers.norm import NoHeadNorm
from headrace.layers.rope import RopeSpec
from headrace.ops.moe import ExpertsShape

from .config import FULL, SLIDING, Fields, narrower, read_decoder, read_experts, read_windows
from .rope_config import rope_from
from .stacked import StackedDecoder

_ALPHA = 1.702
"""Of the experts' gate, in every release."""
_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
"""Where the configuration has none."""


class GptOssForCausalLM(StackedDecoder):
    """Attention with a sink for each head and windows in every other layer; experts with a clamped gate; biases."""

    def __init__(self, config: Mapping[str, Any], ctx: BuildContext) -> None:
        fields = Fields(config, "GptOssForCausalLM")
        fields.choice("hidden_act", ("silu",), "silu")
        c = read_decoder(fields, head_dim=64, tied=False, eps=1e-5, attention_bias=True)
        shape = AttentionShape(c.hidden_size, c.n_heads, c.n_kv_heads, c.head_dim)
        kinds = [FULL if index % 2 else SLIDING for index in range(c.n_layers)]
        windows = read_windows(fields, c.n_layers, kinds, fields.integer("sliding_window", 128))
        n_experts, k = read_experts(fields, ("num_local_experts", "num_experts"), default=128, default_k=4)
        limit = fields.number("swiglu_limit", 7.0)
        if fields.number("swiglu_alpha", _ALPHA) != _ALPHA:
            raise ModelError(f"{fields.where}: swiglu_alpha must be {_ALPHA}, got {fields.raw('swiglu_alpha')!r}")
        experts = ExpertsShape(n_experts, c.hidden_size, c.inner_size, "clamped_glu", limit=limit)

        def mixture(name: str) -> MixtureOfExperts:
            router = SoftmaxRouter(ctx, f"{name}.router", c.hidden_size, n_experts, k, normalised=True, bias=True)
            sources = stacked_experts(f"{name}.experts", experts, interleaved=True, bias=True)
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
                    window=narrower(windows[index], c.max_positions),
                    bias=c.attention_bias,
                    out_bias=c.attention_bias,
                    sinks=True,
                ),
                mixture(f"{name}.mlp"),
            )

        super().__init__(ctx, c, _rope(fields, c.head_dim, c.max_positions), block)


def _rope(fields: Fields, head_dim: int, max_positions: int) -> RopeSpec:
    parameters = fields.mapping("rope_parameters") or fields.mapping("rope_scaling") or _ROPE
    return rope_from(fields, parameters, head_dim=head_dim, max_positions=max_positions, theta=150_000.0)
