"""Qwen3-Next: 80B-A3B."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from headrace.core.errors import ModelError
from headrace.layers.attention import AttentionShape, SelfAttention
from headrace.layers.base import BuildContext, Layer
from headrace.layers.block import PreNormBlock
from headrace.layers.gated_delta import GatedDeltaNet
from headrace.layers.mlp import GatedMLP
from headrace.layers.moe import (
    Experts,
    MixtureOfExperts,
    SharedExpertGate,
    SoftmaxRouter,
    WithSharedExpert,
    separate_experts,
)
from headrace.layers.norm import HeadNorm, RMSNorm
from headrace.layers.rope import Rope, RopeSpec
from headrace.ops.moe import ExpertsShape
from headrace.ops.recurrent import RecurrentShape

from .config import FULL, LINEAR, DecoderConfig, Fields, read_decoder, read_experts, read_layer_types
from .mtp_layer import MtpLayer, MtpNames
from .qwen3_moe import sparse_layers
from .rope_config import read_rope
from .stacked import StackedDecoder

_MTP = "mtp."
_Norm = partial(RMSNorm, plus_one=True)


class Qwen3NextForCausalLM(StackedDecoder):
    """Three gated delta nets to one layer of gated attention, each followed by experts, one of them shared. Norms are
    of the 1 + w kind, but for the one inside the delta nets."""

    def __init__(self, config: Mapping[str, Any], ctx: BuildContext) -> None:
        fields = Fields(config, "Qwen3NextForCausalLM")
        c, rope = _read(fields)
        interval = fields.integer("full_attention_interval", 4)
        pattern = [LINEAR if (i + 1) % interval else FULL for i in range(c.n_layers)]
        kinds = read_layer_types(fields, c.n_layers, pattern, (FULL, LINEAR))
        sparse, block = sparse_layers(fields, c.n_layers), _blocks(fields, ctx, c)
        super().__init__(ctx, c, rope, lambda name, index: block(name, kinds[index], sparse[index]), norm=_Norm)
        self.ignore_below(_MTP)

    @classmethod
    def mtp_prefix(cls, config: Mapping[str, Any]) -> str:
        """What names of tensors of such layers begin with."""
        return _MTP

    @classmethod
    def mtp_layers(cls, config: Mapping[str, Any], ctx: BuildContext) -> list[MtpLayer]:
        """Layers of full attention and experts. What stands around them is one and the same for all."""
        fields = Fields(config, "Qwen3NextForCausalLM")
        c, rope = _read(fields)
        block, parts = _blocks(fields, ctx, c), ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "fc", "norm")

        def layer(name: str) -> MtpLayer:
            around = tuple(f"mtp.{part}" for part in parts)
            names = MtpNames(*around, below=(f"{name}.", *(f"{one}." for one in around)))
            turns, size = Rope(ctx, rope, c.head_dim), c.hidden_size
            return MtpLayer(ctx, names, size, c.eps, (block(name, FULL, True),), rope=turns, norm=_Norm)

        return [layer(f"mtp.layers.{i}") for i in range(fields.integer("num_nextn_predict_layers", 1, at_least=0))]


def _read(fields: Fields) -> tuple[DecoderConfig, RopeSpec]:
    fields.choice("hidden_act", ("silu",), "silu")
    c = read_decoder(fields, head_dim=256, tied=False)
    return c, read_rope(fields, head_dim=c.head_dim, max_positions=c.max_positions, partial=0.25)


def _blocks(fields: Fields, ctx: BuildContext, c: DecoderConfig) -> Callable[[str, str, bool], PreNormBlock]:
    """(name of the layer, kind of its mixer, whether it has experts) -> the layer."""
    mixer, mlp = _mixers(fields, ctx, c), _mlps(fields, ctx, c)

    def block(name: str, kind: str, is_sparse: bool) -> PreNormBlock:
        return PreNormBlock(
            ctx, name, c.hidden_size, c.eps, mixer(name, kind), mlp(f"{name}.mlp", is_sparse), norm=_Norm
        )

    return block


def _mixers(fields: Fields, ctx: BuildContext, c: Any) -> Any:
    """(name of the layer, its kind) -> attention or delta net."""
    shape = AttentionShape(c.hidden_size, c.n_heads, c.n_kv_heads, c.head_dim)
    delta = _delta_shape(fields)

    def mixer(name: str, kind: str) -> Layer:
        if kind == LINEAR:
            return GatedDeltaNet(ctx, f"{name}.linear_attn", delta, c.hidden_size, c.eps)
        name = f"{name}.self_attn"
        norm = HeadNorm(ctx, name, c.n_heads, c.n_kv_heads, c.head_dim, c.eps, plus_one=True)
        bias = c.attention_bias
        return SelfAttention(ctx, name, shape, norm, scale=c.head_dim**-0.5, bias=bias, out_bias=bias, gate=True)

    return mixer


def _mlps(fields: Fields, ctx: BuildContext, c: Any) -> Any:
    """(name of the module, whether it has experts) -> the feed-forward part of a layer."""
    size = c.hidden_size
    n_experts, k = read_experts(fields, ("num_experts", "num_local_experts"), default=512, default_k=10)
    experts = ExpertsShape(n_experts, size, fields.integer("moe_intermediate_size", 512), "silu_mul")
    shared_size = fields.integer("shared_expert_intermediate_size", 512)
    normalised = fields.flag("norm_topk_prob", True)

    def mlp(name: str, is_sparse: bool) -> Layer:
        if not is_sparse:
            return GatedMLP(ctx, name, size, c.inner_size, "silu")
        router = SoftmaxRouter(ctx, f"{name}.gate", size, n_experts, k, normalised=normalised)
        mixture = MixtureOfExperts(router, Experts(ctx, experts, separate_experts(f"{name}.experts", experts)))
        shared = GatedMLP(ctx, f"{name}.shared_expert", size, shared_size, "silu")
        return WithSharedExpert(ctx, mixture, SharedExpertGate(ctx, f"{name}.shared_expert_gate", size, shared))

    return mlp


def _delta_shape(fields: Fields) -> RecurrentShape:
    keys, values = fields.integer("linear_num_key_heads", 16), fields.integer("linear_num_value_heads", 32)
    if values % keys:
        raise ModelError(
            f"{fields.where}: linear_num_value_heads = {values} must be a multiple of linear_num_key_heads = {keys}"
        )
    return RecurrentShape(
        n_units=keys,
        heads=values // keys,
        rows=fields.integer("linear_key_head_dim", 128),
        cols=fields.integer("linear_value_head_dim", 128),
        taps=fields.integer("linear_conv_kernel_dim", 4),
    )
