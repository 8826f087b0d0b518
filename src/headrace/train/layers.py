"""Layers of draft heads that can be trained.

In training every position starts a chain of its own, as it would when drafting: at step 0 it reads the states of the
model, at step k what it made itself at step k - 1, beside the token that is known by then. Its keys of earlier steps
are seen by its own chain only.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from headrace.core.errors import ModelError

KeysAndValues = list[tuple[torch.Tensor, torch.Tensor]]
"""Of all steps so far, [B, heads, S, head_dim] each."""


class HeadShape:
    """Sizes of a head, as they stand in its ``config.json``."""

    def __init__(self, config: dict[str, object]) -> None:
        def size(name: str) -> int:
            value = config[name]
            if not isinstance(value, int):
                raise ModelError(f"{name} of a draft head must be an integer, got {value!r}")
            return value

        self.hidden, self.inner = size("hidden_size"), size("intermediate_size")
        self.n_heads, self.n_kv_heads, self.head_dim = (
            size("num_attention_heads"),
            size("num_key_value_heads"),
            size("head_dim"),
        )
        self.draft_vocab = size("draft_vocab_size")
        self.eps, self.theta = float(config["rms_norm_eps"]), float(config["rope_theta"])  # type: ignore[arg-type]


class Norm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self._eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self._eps) * self.weight).to(x.dtype)


class ChainAttention(nn.Module):
    """Over chains; ``width``: of the rows that it reads."""

    def __init__(self, shape: HeadShape, width: int) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = nn.Linear(width, shape.n_heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(width, shape.n_kv_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(width, shape.n_kv_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.n_heads * shape.head_dim, shape.hidden, bias=False)

    def forward(self, x: torch.Tensor, cache: KeysAndValues) -> torch.Tensor:
        shape, (batch, length, _) = self.shape, x.shape
        step = len(cache)
        angles = _angles(length, step, shape.head_dim, shape.theta)
        q = _turn(self.q_proj(x).view(batch, length, shape.n_heads, shape.head_dim).transpose(1, 2), angles)
        k = _turn(self.k_proj(x).view(batch, length, shape.n_kv_heads, shape.head_dim).transpose(1, 2), angles)
        v = self.v_proj(x).view(batch, length, shape.n_kv_heads, shape.head_dim).transpose(1, 2)
        each = shape.n_heads // shape.n_kv_heads
        cache.append((k.repeat_interleave(each, 1), v.repeat_interleave(each, 1)))
        q = q * shape.head_dim**-0.5
        first_keys, first_values = cache[0]
        past = torch.ones(length, length, dtype=torch.bool).tril()
        scores = (q @ first_keys.transpose(2, 3)).float().masked_fill(~past, float("-inf"))
        own = [(q * keys).float().sum(3, keepdim=True) for keys, _ in cache[1:]]
        weights = torch.cat([scores, *own], 3).softmax(3).to(q.dtype)
        mixed = weights[..., :length] @ first_values
        for place, (_, values) in enumerate(cache[1:]):
            mixed = mixed + weights[..., length + place, None] * values
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))


class MLP(nn.Module):
    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.inner, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.inner, bias=False)
        self.down_proj = nn.Linear(shape.inner, shape.hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def _angles(length: int, first: int, head_dim: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    frequencies = theta ** -(torch.arange(0, head_dim, 2) / head_dim)
    angles = torch.outer(torch.arange(first, first + length).float(), frequencies)
    return angles.cos(), angles.sin()


def _turn(x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary embedding in halves (RoFormer, arXiv 2104.09864)."""
    cos, sin = (part.to(x.dtype) for part in angles)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
