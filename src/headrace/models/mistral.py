"""Mistral 7B and what followed it in the same shape (Nemo, Small, Ministral 8B)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.layers.attention import AttentionShape, SelfAttention
from headrace.layers.base import BuildContext
from headrace.layers.block import PreNormBlock
from headrace.layers.mlp import GatedMLP
from headrace.layers.norm import NoHeadNorm

from .config import FULL, SLIDING, Fields, narrower, read_decoder, read_windows
from .rope_config import read_rope
from .stacked import StackedDecoder


class MistralForCausalLM(StackedDecoder):
    """Llama's block. With a ``sliding_window`` every layer slides, unless ``layer_types`` names those that do."""

    def __init__(self, config: Mapping[str, Any], ctx: BuildContext) -> None:
        fields = Fields(config, "MistralForCausalLM")
        fields.choice("hidden_act", ("silu",), "silu")
        c = read_decoder(fields, head_dim=None, tied=False)
        shape = AttentionShape(c.hidden_size, c.n_heads, c.n_kv_heads, c.head_dim)
        windows = _windows(fields, c.n_layers, c.max_positions)

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
                    window=windows[index],
                ),
                GatedMLP(ctx, f"{name}.mlp", c.hidden_size, c.inner_size, "silu"),
            )

        super().__init__(ctx, c, read_rope(fields, head_dim=c.head_dim, max_positions=c.max_positions), block)


def _windows(fields: Fields, n_layers: int, max_positions: int) -> tuple[int | None, ...]:
    # Releases after the first say null and mean full attention; without the field it is the architecture's default.
    window = fields.integer("sliding_window", None if fields.has("sliding_window") else 4096)
    given = read_windows(fields, n_layers, [SLIDING if window else FULL] * n_layers, window)
    return tuple(narrower(window, max_positions) for window in given)
