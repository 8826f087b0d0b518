"""MTP layers of Llama's kind in a folder of their own: they draft for any model of their width and vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.core.errors import ModelError
from headrace.layers.attention import AttentionShape, SelfAttention
from headrace.layers.base import BuildContext
from headrace.layers.block import PreNormBlock
from headrace.layers.mlp import GatedMLP
from headrace.layers.norm import NoHeadNorm
from headrace.layers.rope import Rope

from .config import Fields, read_decoder
from .mtp_layer import MtpLayer, MtpNames
from .rope_config import read_rope

ARCHITECTURE = "LlamaMTPModel"
"""What the configuration of such a folder calls it."""


def mtp_layers(config: Mapping[str, Any], ctx: BuildContext) -> list[MtpLayer]:
    """``num_hidden_layers`` of them. Names are those of Qwen3-Next's: ``mtp.pre_fc_norm_embedding``,
    ``mtp.pre_fc_norm_hidden``, ``mtp.fc``, ``mtp.layers.N``, ``mtp.norm``; all but the layers are one and the same for
    all."""
    fields = Fields(config, ARCHITECTURE)
    c = read_decoder(fields, head_dim=None, tied=False)
    act = fields.choice("hidden_act", ("silu",), "silu")
    for name, why in (("attention_bias", "projections have no biases"), ("mlp_bias", "the MLP has no biases")):
        if fields.flag(name, False):
            raise ModelError(f"{fields.where}: {name} is set: {why} in such a layer")
    shape = AttentionShape(c.hidden_size, c.n_heads, c.n_kv_heads, c.head_dim)
    rope = read_rope(fields, head_dim=c.head_dim, max_positions=c.max_positions)
    around = tuple(f"mtp.{part}" for part in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "fc", "norm"))

    def layer(name: str) -> MtpLayer:
        attention = SelfAttention(ctx, f"{name}.self_attn", shape, NoHeadNorm(), scale=c.head_dim**-0.5)
        mlp = GatedMLP(ctx, f"{name}.mlp", c.hidden_size, c.inner_size, act)
        block = PreNormBlock(ctx, name, c.hidden_size, c.eps, attention, mlp)
        names = MtpNames(*around, below=(f"{name}.", *(f"{one}." for one in around)))
        return MtpLayer(ctx, names, c.hidden_size, c.eps, (block,), rope=Rope(ctx, rope, c.head_dim))

    return [layer(f"mtp.layers.{i}") for i in range(c.n_layers)]
