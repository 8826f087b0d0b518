"""Layers of vision towers."""

from __future__ import annotations

import torch

from .base import BuildContext, Layer, Parameter, Source, Weight
from .gate import TanhGate
from .linear import Linear
from .norm import LayerNorm


class PatchEmbedding(Layer):
    """A convolution whose stride is its width: each patch of pixels times one matrix.

    Args:
        name: path of the checkpoint's convolution, ``.weight`` [size, channels, patch, patch].
    """

    def __init__(self, ctx: BuildContext, name: str, size: int, patch: int, channels: int = 3) -> None:
        self._patch = patch
        n_in = channels * patch * patch
        source = Source(f"{name}.weight", (size, channels, patch, patch), 0, size, turn=_flat)
        self.weight = Weight(ctx, (size, n_in), (source,))
        self._ops = self.weight.ops

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """[n, channels, height, width], whole patches -> [n, patches, size], row by row of the picture."""
        n, channels, height, width = pixels.shape
        cut = pixels.view(n, channels, height // self._patch, self._patch, width // self._patch, self._patch)
        rows = cut.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels * self._patch * self._patch)
        return self._ops.apply(rows, self.weight.data, None).view(n, -1, self.weight.shape[0])


def _flat(kernels: torch.Tensor) -> torch.Tensor:
    return kernels.flatten(1)


class VisionAttention(Layer):
    """Attention of patches over patches, in both directions.

    Args:
        name: path of the checkpoint's module (``...self_attn``).
    """

    def __init__(self, ctx: BuildContext, name: str, size: int, n_heads: int, *, bias: bool = False) -> None:
        self._n_heads, self._head_dim = n_heads, size // n_heads
        self._attend = ctx.ops.encoder_attention
        names = tuple(f"{name}.{part}" for part in ("q_proj", "k_proj", "v_proj"))
        self.qkv = Linear(ctx, names, size, (size,) * 3, bias=bias)
        self.out = Linear(ctx, (f"{name}.o_proj",), size, (size,), bias=bias, parts=n_heads)

    def __call__(self, x: torch.Tensor, ranges: torch.Tensor) -> torch.Tensor:
        """[T, size] -> [T, size]; row i sees rows ``ranges[i]``, [first, end)."""
        q, k, v = self.qkv(x).view(-1, 3, self._n_heads, self._head_dim).unbind(1)
        starts = torch.tensor([0, x.shape[0]])
        return self.out(self._attend(q, k, v, starts, scale=self._head_dim**-0.5, ranges=ranges).flatten(1))


class VisionMLP(Layer):
    """fc2(gelu(fc1 x)), with biases."""

    def __init__(self, ctx: BuildContext, name: str, size: int, inner_size: int) -> None:
        self._act = ctx.ops.gelu
        self.up = Linear(ctx, (f"{name}.fc1",), size, (inner_size,), bias=True)
        self.down = Linear(ctx, (f"{name}.fc2",), inner_size, (size,), bias=True, parts=inner_size)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, size] -> [T, size]."""
        return self.down(self._act(self.up(x)))


class VisionBlock(Layer):
    """x + attention(norm x), then x + mlp(norm x); each branch may have a gate.

    Args:
        name: path of the checkpoint's layer.
        gated: the checkpoint has ``gate_attn`` and ``gate_ffn``.
    """

    def __init__(
        self, ctx: BuildContext, name: str, size: int, n_heads: int, inner_size: int, eps: float, *, gated: bool = False
    ) -> None:
        self._add, self._add_scaled = ctx.ops.add, ctx.ops.add_scaled
        self.attention_norm = LayerNorm(ctx, f"{name}.input_layernorm", size, eps)
        self.attention = VisionAttention(ctx, f"{name}.self_attn", size, n_heads)
        self.mlp_norm = LayerNorm(ctx, f"{name}.post_attention_layernorm", size, eps)
        self.mlp = VisionMLP(ctx, f"{name}.mlp", size, inner_size)
        self.gates = tuple(TanhGate(ctx, f"{name}.{gate}") for gate in ("gate_attn", "gate_ffn")) if gated else ()

    def __call__(self, x: torch.Tensor, ranges: torch.Tensor) -> torch.Tensor:
        """[T, size] -> [T, size]; ``ranges`` as for ``VisionAttention``."""
        seen = self.attention(self.attention_norm(x), ranges)
        x = self._add_scaled(x, seen, self.gates[0].factor) if self.gates else self._add(x, seen)
        y = self.mlp(self.mlp_norm(x))
        return self._add_scaled(x, y, self.gates[1].factor) if self.gates else self._add(x, y)


class GatedTable(Layer):
    """Vectors by the shape of a picture, and a gate.

    Args:
        name: path of the module; ``table`` and ``gate`` are names of its tensors.
        shape: of an entry.
    """

    def __init__(
        self, ctx: BuildContext, name: str, n_entries: int, shape: tuple[int, ...], *, table: str = "embedding.weight"
    ) -> None:
        self._shape = shape
        width = torch.Size(shape).numel()
        self.table = Parameter(ctx, (n_entries, width), (Source(f"{name}.{table}", (n_entries, width), 0, n_entries),))
        self.gate = TanhGate(ctx, f"{name}.gate")

    def __call__(self, entry: int) -> torch.Tensor:
        """The entry times the tanh of the gate, fp32."""
        return self.table.data[entry].float().view(self._shape) * self.gate.factor
