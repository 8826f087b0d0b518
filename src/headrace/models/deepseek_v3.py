"""DeepSeek-V3, R1 and V3.1, and what has their graph in other sizes (Kimi-K2)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from headrace.core.errors import ModelError
from headrace.layers.base import BuildContext, Layer
from headrace.layers.block import PreNormBlock
from headrace.layers.mla import LatentSelfAttention, LatentShape
from headrace.layers.mlp import GatedMLP
from headrace.layers.moe import (
    Experts,
    MixtureOfExperts,
    SigmoidRouter,
    WithSharedExpert,
    separate_experts,
)
from headrace.layers.rope import Rope, RopeSpec, yarn_gain
from headrace.ops.moe import ExpertsShape

from .config import DecoderConfig, Fields, read_decoder
from .grouped_choice import GroupedDefaults, read_grouped_choice
from .mtp_layer import MtpLayer, MtpNames
from .rope_config import read_rope
from .stacked import MakeBlock, StackedDecoder

log = logging.getLogger("headrace")


class DeepseekV3ForCausalLM(StackedDecoder):
    """Latent attention; the first layers have an MLP, the others experts chosen within groups beside a shared one."""

    def __init__(self, config: Mapping[str, Any], ctx: BuildContext) -> None:
        fields = Fields(config, "DeepseekV3ForCausalLM")
        c, rope, block = _read(fields, ctx)
        super().__init__(ctx, c, rope, block)
        if ctx.scheme.format("model.layers.0.self_attn.kv_b_proj.weight", is_table=False) is not None:
            log.warning(
                "kv_b_proj stays in %s: heads read its halves one by one, and only floats are read so", ctx.dtype
            )
        # Layers behind the last predict further tokens: `mtp_layers`.
        self.ignore_below(*(f"model.layers.{c.n_layers + i}." for i in range(_n_further(fields))))

    @classmethod
    def mtp_prefix(cls, config: Mapping[str, Any]) -> str:
        """What names of tensors of the first of them begin with."""
        return f"model.layers.{config['num_hidden_layers']}."

    @classmethod
    def mtp_layers(cls, config: Mapping[str, Any], ctx: BuildContext) -> list[MtpLayer]:
        """The layers behind the last one."""
        fields = Fields(config, "DeepseekV3ForCausalLM")
        c, rope, block = _read(fields, ctx)

        def layer(index: int) -> MtpLayer:
            name = f"model.layers.{index}"
            parts = (f"{name}.enorm", f"{name}.hnorm", f"{name}.eh_proj", f"{name}.shared_head.norm")
            names = MtpNames(*parts, below=(f"{name}.",))
            return MtpLayer(ctx, names, c.hidden_size, c.eps, (block(name, index),), rope=Rope(ctx, rope, c.head_dim))

        return [layer(c.n_layers + i) for i in range(_n_further(fields))]


def _n_further(fields: Fields) -> int:
    return fields.integer("num_nextn_predict_layers", 1, at_least=0)


def _read(fields: Fields, ctx: BuildContext) -> tuple[DecoderConfig, RopeSpec, MakeBlock]:
    """The common part of a configuration, the rope, and what makes a block."""
    fields.choice("hidden_act", ("silu",), "silu")
    rope_dim = fields.integer("qk_rope_head_dim")
    c = replace(read_decoder(fields, head_dim=rope_dim, tied=False), head_dim=rope_dim)
    if c.n_kv_heads != c.n_heads:
        raise ModelError(
            f"{fields.where}: num_key_value_heads = {c.n_kv_heads} must equal num_attention_heads = {c.n_heads}:"
            " all heads read the same latent vectors"
        )
    shape = LatentShape(
        hidden_size=c.hidden_size,
        n_heads=c.n_heads,
        q_rank=fields.integer("q_lora_rank", None if fields.has("q_lora_rank") else 1536),
        kv_rank=fields.integer("kv_lora_rank"),
        nope_dim=fields.integer("qk_nope_head_dim"),
        rope_dim=rope_dim,
        v_dim=fields.integer("v_head_dim"),
    )
    rope = read_rope(fields, head_dim=rope_dim, max_positions=c.max_positions)
    scale = shape.q_dim**-0.5 * _gain(rope) ** 2
    paired = fields.flag("rope_interleave", True)
    first_mixture = fields.integer("first_k_dense_replace", 3, at_least=0)
    frequency = fields.integer("moe_layer_freq", 1)
    mixture = _mixture(fields, c)

    def block(name: str, index: int) -> PreNormBlock:
        is_mixture = index >= first_mixture and index % frequency == 0
        return PreNormBlock(
            ctx,
            name,
            c.hidden_size,
            c.eps,
            LatentSelfAttention(ctx, f"{name}.self_attn", shape, scale=scale, bias=c.attention_bias, paired=paired),
            mixture(ctx, f"{name}.mlp")
            if is_mixture
            else GatedMLP(ctx, f"{name}.mlp", c.hidden_size, c.inner_size, "silu"),
        )

    return c, rope, block


def _gain(rope: RopeSpec) -> float:
    """What YaRN multiplies queries and keys with beside its factor on cosines and sines."""
    return yarn_gain(rope.factor, rope.mscale_all_dim) if rope.mscale_all_dim else 1.0


def _mixture(fields: Fields, c: DecoderConfig) -> Any:
    """What makes the mixture of a layer, from (ctx, name)."""
    fields.choice("scoring_func", ("sigmoid",), "sigmoid")
    fields.choice("topk_method", ("noaux_tc",), "noaux_tc")
    n_experts, choice = read_grouped_choice(fields, GroupedDefaults(256, 8, n_groups=8, top_groups=4, factor=2.5))
    inner = fields.integer("moe_intermediate_size", 2048)
    shared = inner * fields.integer("n_shared_experts", 1)
    shape = ExpertsShape(n_experts, c.hidden_size, inner, "silu_mul")

    def make(ctx: BuildContext, name: str) -> Layer:
        return WithSharedExpert(
            ctx,
            MixtureOfExperts(
                SigmoidRouter(ctx, f"{name}.gate", c.hidden_size, n_experts, choice, corrected=True),
                Experts(ctx, shape, separate_experts(f"{name}.experts", shape)),
            ),
            GatedMLP(ctx, f"{name}.shared_experts", c.hidden_size, shared, "silu"),
        )

    return make
