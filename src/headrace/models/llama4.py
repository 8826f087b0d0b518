"""Llama 4, the text model: Scout and Maverick."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from headrace.core.errors import ModelError
from headrace.layers.attention import AttentionShape, SelfAttention
from headrace.layers.base import BuildContext
from headrace.layers.block import PreNormBlock
from headrace.layers.mlp import GatedMLP
from headrace.layers.moe import (
    Experts,
    MixtureOfExperts,
    SigmoidChoice,
    SigmoidRouter,
    WithSharedExpert,
    separate_experts,
    stacked_experts,
)
from headrace.layers.norm import NoHeadNorm
from headrace.layers.query_keys import FarQueryKeys, NormedQueryKeys, QueryKeys
from headrace.ops.moe import ExpertsShape

from .config import CHUNKED, FULL, DecoderConfig, Fields, narrower, read_decoder, read_experts, read_layer_types
from .rope_config import read_rope
from .stacked import StackedDecoder

log = logging.getLogger("headrace")


class Llama4ForCausalLM(StackedDecoder):
    """Layers that see their chunk and are rotated, and full ones that know no positions; experts beside a shared one.

    Also the text part of ``Llama4ForConditionalGeneration``, whose vision tower is not loaded.
    """

    def __init__(self, config: Mapping[str, Any], ctx: BuildContext) -> None:
        fields, prefix = _text_part(config)
        # Set by checkpoints that have a tensor for each expert.
        is_separate = Fields(config, "Llama4ForCausalLM").flag("separate_experts", False)
        fields.choice("hidden_act", ("silu",), "silu")
        c = read_decoder(fields, head_dim=128, tied=False, eps=1e-5)
        shape = AttentionShape(c.hidden_size, c.n_heads, c.n_kv_heads, c.head_dim)
        rotated = _rotated(fields, c.n_layers)
        kinds = read_layer_types(fields, c.n_layers, [CHUNKED if r else FULL for r in rotated], (FULL, CHUNKED))
        chunk = narrower(fields.integer("attention_chunk_size", None), c.max_positions)
        experts, mixed = _Mixture(ctx, fields, c, is_separate), _mixed_layers(fields, c.n_layers)
        dense_size = fields.integer("intermediate_size_mlp", 16384)
        query_keys = _query_keys(ctx, fields, c)

        def block(name: str, index: int) -> PreNormBlock:
            mlp = f"{name}.feed_forward"
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
                    chunk=chunk if kinds[index] == CHUNKED else None,
                    rotated=rotated[index],
                    neighbours=rotated[index],
                    query_keys=query_keys[rotated[index]],
                    bias=c.attention_bias,
                    out_bias=c.attention_bias,
                ),
                experts(mlp) if mixed[index] else GatedMLP(ctx, mlp, c.hidden_size, dense_size, "silu"),
            )

        rope = read_rope(fields, head_dim=c.head_dim, max_positions=c.max_positions, theta=500_000.0)
        super().__init__(ctx, c, rope, block, prefix=prefix)
        if prefix:
            self.ignore_below("vision_model.", "multi_modal_projector.")


def _text_part(config: Mapping[str, Any]) -> tuple[Fields, str]:
    """The fields of the text model, and what its tensors' names begin with."""
    outer = Fields(config, "Llama4ForCausalLM")
    text = outer.mapping("text_config")
    if not text:
        return outer, ""
    outer.refuse("quantization_config", "only plain float weights are read here")
    log.warning("Llama 4 takes text only here: images are refused, and the vision tower is not loaded")
    return Fields(text, "Llama4ForCausalLM, text_config"), "language_model."


class _Mixture:
    """Makes the experts of a layer: each row goes to few, its input scaled by their chances, and through one more."""

    def __init__(self, ctx: BuildContext, fields: Fields, c: DecoderConfig, is_separate: bool) -> None:
        self._sources = separate_experts if is_separate else stacked_experts
        self._ctx, self._size, self._inner = ctx, c.hidden_size, c.inner_size
        n_experts, k = read_experts(fields, ("num_local_experts", "num_experts"), default=16, default_k=1)
        self._choice = SigmoidChoice(k)
        self._shape = ExpertsShape(n_experts, c.hidden_size, c.inner_size, "silu_mul", scaled_input=True)

    def __call__(self, name: str) -> WithSharedExpert:
        ctx, shape = self._ctx, self._shape
        router = SigmoidRouter(ctx, f"{name}.router", self._size, shape.n_experts, self._choice)
        experts = Experts(ctx, shape, self._sources(f"{name}.experts", shape))
        shared = GatedMLP(ctx, f"{name}.shared_expert", self._size, self._inner, "silu")
        return WithSharedExpert(ctx, MixtureOfExperts(router, experts), shared)


def _query_keys(ctx: BuildContext, fields: Fields, c: DecoderConfig) -> dict[bool, QueryKeys]:
    """What becomes of queries and keys at last, in rotated layers and in others."""
    heads = QueryKeys(c.n_heads)
    normed = NormedQueryKeys(ctx, c.n_heads, c.head_dim, c.eps) if fields.flag("use_qk_norm", True) else heads
    floor_scale, attn_scale = fields.number("floor_scale", 8192.0), fields.number("attn_scale", 0.1)
    # A number in the first files of Scout; what it is does not matter.
    tuned = fields.raw("attn_temperature_tuning", True) not in (False, 0)
    return {True: normed, False: FarQueryKeys(ctx, c.n_heads, floor_scale, attn_scale) if tuned else heads}


def _rotated(fields: Fields, n_layers: int) -> list[bool]:
    """``no_rope_layers`` has 1 for layers that are rotated; without it every fourth is not."""
    step = fields.integer("no_rope_layer_interval", 4)
    given = fields.raw("no_rope_layers", None) or [int((i + 1) % step != 0) for i in range(n_layers)]
    if not isinstance(given, list) or len(given) != n_layers or not all(flag in (0, 1) for flag in given):
        raise ModelError(
            f"{fields.where}: no_rope_layers must list {n_layers} (num_hidden_layers) of 1 and 0, got {given!r}"
        )
    return [bool(flag) for flag in given]


def _mixed_layers(fields: Fields, n_layers: int) -> list[bool]:
    """``moe_layers``; without it the last of every ``interleave_moe_layer_step`` layers."""
    step = fields.integer("interleave_moe_layer_step", 1)
    given = fields.raw("moe_layers", list(range(step - 1, n_layers, step)))
    if not isinstance(given, list) or not all(type(i) is int and 0 <= i < n_layers for i in given):
        raise ModelError(
            f"{fields.where}: moe_layers must list layers from 0 to {n_layers - 1} (num_hidden_layers - 1),"
            f" got {given!r}"
        )
    return [i in given for i in range(n_layers)]
