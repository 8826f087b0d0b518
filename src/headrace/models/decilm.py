"""DeciLM, the Nemotron models that a search over Llama's blocks has made (Nemotron 51B, Super 49B, Ultra 253B)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headrace.core.errors import ModelError
from headrace.layers.attention import AttentionShape, SelfAttention
from headrace.layers.base import BuildContext, Layer
from headrace.layers.block import AttentionBranch, Branch, BranchedBlock
from headrace.layers.linear import Linear
from headrace.layers.mlp import GatedMLP
from headrace.layers.norm import NoHeadNorm

from .config import DecoderConfig, Fields, read_decoder
from .rope_config import read_rope
from .stacked import StackedDecoder


class DeciLMForCausalLM(StackedDecoder):
    """Llama, but each layer says in ``block_configs`` what is left of it.

    Attention has a number of KV heads of its own in every layer, the MLP a width; either may be a linear map of its
    normed input, or gone together with its norm and its residual sum.
    """

    def __init__(self, config: Mapping[str, Any], ctx: BuildContext) -> None:
        fields = Fields(config, "DeciLMForCausalLM")
        fields.choice("hidden_act", ("silu",), "silu")
        c = read_decoder(fields, head_dim=None, tied=False, inner_size=0)
        choices = _read_choices(fields, c)
        mlp_bias = fields.flag("mlp_bias", False)

        def block(name: str, index: int) -> BranchedBlock:
            attention, mlp = choices[index]
            branches: list[Layer] = []
            if isinstance(attention, Replaced):
                linear = _linear(ctx, c, f"{name}.self_attn.linear_attn")
                branches.append(Branch(ctx, f"{name}.input_layernorm", c.hidden_size, c.eps, linear))
            elif attention is not None:
                heads = _attention(ctx, c, f"{name}.self_attn", attention)
                branches.append(AttentionBranch(ctx, f"{name}.input_layernorm", c.hidden_size, c.eps, heads))
            if mlp is not None:
                part = (
                    _linear(ctx, c, f"{name}.mlp.linear_mlp")
                    if isinstance(mlp, Replaced)
                    else GatedMLP(ctx, f"{name}.mlp", c.hidden_size, mlp, "silu", bias=mlp_bias)
                )
                branches.append(Branch(ctx, f"{name}.post_attention_layernorm", c.hidden_size, c.eps, part))
            return BranchedBlock(tuple(branches))

        super().__init__(ctx, c, read_rope(fields, head_dim=c.head_dim, max_positions=c.max_positions), block)


@dataclass(frozen=True, slots=True)
class Replaced:
    """A linear map stands here."""


Choice = int | Replaced | None
"""KV heads of an attention, or width of an MLP; Replaced; None where there is nothing."""

_REPLACED = Replaced()
_COMMON = {"no_op", "replace_with_linear"}


def _read_choices(fields: Fields, c: DecoderConfig) -> list[tuple[Choice, Choice]]:
    blocks = fields.raw("block_configs")
    if not isinstance(blocks, list) or len(blocks) != c.n_layers:
        raise ModelError(
            f"{fields.where}: block_configs must list {c.n_layers} (num_hidden_layers) objects, got {blocks!r:.80}"
        )
    choices = []
    for index, block in enumerate(blocks):
        own = Fields(block if isinstance(block, Mapping) else {}, f"{fields.where}, block_configs[{index}]")
        attention = Fields(own.mapping("attention"), f"{own.where}.attention")
        mlp = Fields(own.mapping("ffn"), f"{own.where}.ffn")
        choices.append((_kv_heads(attention, c.n_heads), _width(mlp, c.hidden_size)))
    return choices


def _kv_heads(fields: Fields, n_heads: int) -> Choice:
    fields.only({*_COMMON, "n_heads_in_group"})
    if fields.flag("no_op", False):
        return None
    if fields.flag("replace_with_linear", False):
        return _REPLACED
    shared = fields.integer("n_heads_in_group")
    if n_heads % shared:
        raise ModelError(f"{fields.where}: n_heads_in_group = {shared} does not divide num_attention_heads = {n_heads}")
    return n_heads // shared


def _width(fields: Fields, hidden_size: int) -> Choice:
    """``ffn_mult`` counts in 2/3 of the hidden size, rounded up to 256; newer files give the width itself."""
    fields.only({*_COMMON, "ffn_mult", "intermediate_size", "hidden_act", "gated"})
    fields.choice("hidden_act", ("silu",), "silu")
    if fields.flag("no_op", False):
        return None
    if fields.flag("replace_with_linear", False):
        return _REPLACED
    if not fields.flag("gated", True):
        raise ModelError(f"{fields.where}: gated = false is not supported: the MLP of this architecture has a gate")
    given = fields.integer("intermediate_size", None)
    return given if given is not None else -(-int(2 * fields.number("ffn_mult") * hidden_size / 3) // 256) * 256


def _linear(ctx: BuildContext, c: DecoderConfig, name: str) -> Linear:
    return Linear(ctx, (name,), c.hidden_size, (c.hidden_size,))


def _attention(ctx: BuildContext, c: DecoderConfig, name: str, n_kv_heads: int) -> SelfAttention:
    return SelfAttention(
        ctx,
        name,
        AttentionShape(c.hidden_size, c.n_heads, n_kv_heads, c.head_dim),
        NoHeadNorm(),
        scale=c.head_dim**-0.5,
        bias=c.attention_bias,
        out_bias=c.attention_bias,
    )
