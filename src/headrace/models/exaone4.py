"""EXAONE 4.0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.core.errors import ModelError
from headrace.layers.attention import AttentionShape, SelfAttention
from headrace.layers.base import BuildContext
from headrace.layers.block import PostNormBlock
from headrace.layers.mlp import GatedMLP
from headrace.layers.norm import HeadNorm

from .config import FULL, SLIDING, Fields, read_decoder, read_windows
from .rope_config import read_rope
from .stacked import StackedDecoder


class Exaone4ForCausalLM(StackedDecoder):
    """Norms after attention and MLP, and on every query and key head.

    With a ``sliding_window``, sliding layers are rotated and full ones know no positions; without one, every layer is
    full and rotated.
    """

    def __init__(self, config: Mapping[str, Any], ctx: BuildContext) -> None:
        fields = Fields(config, "Exaone4ForCausalLM")
        fields.choice("hidden_act", ("silu",), "silu")
        c = read_decoder(fields, head_dim=None, tied=False, eps=1e-5)
        shape = AttentionShape(c.hidden_size, c.n_heads, c.n_kv_heads, c.head_dim)
        window = fields.integer("sliding_window", None if fields.has("sliding_window") else 4096)
        windows = _windows(fields, c.n_layers, window)

        def block(name: str, index: int) -> PostNormBlock:
            return PostNormBlock(
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
                    window=windows[index],
                    rotated=window is None or windows[index] is not None,
                ),
                GatedMLP(ctx, f"{name}.mlp", c.hidden_size, c.inner_size, "silu"),
            )

        super().__init__(ctx, c, read_rope(fields, head_dim=c.head_dim, max_positions=c.max_positions), block)


def _windows(fields: Fields, n_layers: int, window: int | None) -> tuple[int | None, ...]:
    """``sliding_window_pattern`` is a period (its last layer is full), or letters, L for sliding and G for full."""
    kinds = [FULL] * n_layers if window is None else _kinds(fields, n_layers)
    return read_windows(fields, n_layers, kinds, window)


def _kinds(fields: Fields, n_layers: int) -> list[str]:
    pattern = fields.raw("sliding_window_pattern", 4)
    if not isinstance(pattern, str):
        period = fields.integer("sliding_window_pattern", 4)
        return [SLIDING if (i + 1) % period else FULL for i in range(n_layers)]
    if not pattern or set(pattern) - {"L", "G"}:
        raise ModelError(f"{fields.where}: sliding_window_pattern must be an integer or of L and G, got {pattern!r}")
    # With letters, the last layer of all is full, wherever in the pattern it falls.
    return [SLIDING if pattern[i % len(pattern)] == "L" and i < n_layers - 1 else FULL for i in range(n_layers)]
