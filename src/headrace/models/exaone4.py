"""EXAONE 4.0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from headrace.core.errors import ModelError
from headrace.layers.attention import AttentionShape, SelfAttention
from headrace.layers.base import BuildContext
from headrace.layers.block import PostNormBlock
from headrace.layers.embedding import Embedding, LMHead
from headrace.layers.mlp import GatedMLP
from headrace.layers.norm import HeadNorm, RMSNorm
from headrace.layers.rope import Rope
from headrace.ops.batch import Batch

from .base import Decoder
from .config import FULL, SLIDING, Fields, read_decoder, read_windows
from .rope_config import read_rope


class Exaone4ForCausalLM(Decoder):
    """Norms after attention and MLP, and on every query and key head.

    With a ``sliding_window``, sliding layers are rotated and full ones know no positions; without one, every layer is
    full and rotated.
    """

    def __init__(self, config: Mapping[str, Any], ctx: BuildContext) -> None:
        fields = Fields(config, "Exaone4ForCausalLM")
        fields.choice("hidden_act", ("silu",), "silu")
        c = read_decoder(fields, head_dim=None, tied=False, eps=1e-5)
        super().__init__(c.vocab_size, c.max_positions, tied=c.tied)
        shape = AttentionShape(c.hidden_size, c.n_heads, c.n_kv_heads, c.head_dim)
        window = fields.integer("sliding_window", None if fields.has("sliding_window") else 4096)
        windows = _windows(fields, c.n_layers, window)
        self.embed = Embedding(ctx, "model.embed_tokens", c.vocab_size, c.hidden_size)
        self.rope = Rope(ctx, read_rope(fields, head_dim=c.head_dim, max_positions=c.max_positions), c.head_dim)
        self.layers = tuple(
            PostNormBlock(
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
                    window=own,
                    rotated=window is None or own is not None,
                ),
                GatedMLP(ctx, f"{name}.mlp", c.hidden_size, c.inner_size, "silu"),
            )
            for name, own in ((f"model.layers.{i}", own) for i, own in enumerate(windows))
        )
        self.norm = RMSNorm(ctx, "model.norm", c.hidden_size, c.eps)
        self.head = LMHead(ctx, "lm_head", c.vocab_size, c.hidden_size, tied=self.embed if c.tied else None)

    def forward(self, batch: Batch) -> torch.Tensor:
        x = self.embed(batch.input_ids)
        angles = self.rope(batch.positions)
        for layer in self.layers:
            x = layer(x, angles, batch)
        return self.norm(x)


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
