"""Activations, the cap of logits, the sums between parts of a block, and factors of rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """[T, 2 n] -> [T, n]: silu(first half) * second half (SwiGLU, arXiv 2002.05202)."""
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate).mul_(up)


def gelu_tanh_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """[T, 2 n] -> [T, n]: gelu(first half), tanh form, * second half (GeGLU, arXiv 2002.05202)."""
    gate, up = gate_up.chunk(2, -1)
    return F.gelu(gate, approximate="tanh").mul_(up)


def gelu(x: torch.Tensor) -> torch.Tensor:
    """x (1 + erf(x / sqrt(2))) / 2 (arXiv 1606.08415), a new tensor."""
    return F.gelu(x)


def relu_squared(x: torch.Tensor) -> torch.Tensor:
    """max(x, 0)^2 (arXiv 2109.08668), a new tensor."""
    return F.relu(x).square_()


def soft_cap(x: torch.Tensor, cap: float) -> torch.Tensor:
    """cap * tanh(x / cap)."""
    return torch.tanh(x / cap).mul_(cap)


def add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """x + y, both [T, n]."""
    return x + y


def add_scaled(x: torch.Tensor, y: torch.Tensor, factor: float) -> torch.Tensor:
    """x + factor * y, both [T, n]: what a gate lets through of a branch."""
    return (x.float() + y.float() * factor).to(x.dtype)


def scale(x: torch.Tensor, factor: float) -> torch.Tensor:
    """x times ``factor``, which is rounded to the dtype of x first (Gemma's embeddings)."""
    return x * torch.tensor(factor, dtype=x.dtype, device=x.device)


def clamped_glu(gate_up: torch.Tensor, limit: float) -> torch.Tensor:
    """[T, 2 n] -> [T, n]: (u + 1) g sigmoid(1.702 g), g the first half, at most ``limit``, u the second, between
    -``limit`` and ``limit`` (GPT-OSS)."""
    gate, up = gate_up.chunk(2, -1)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (up + 1) * (gate * torch.sigmoid(1.702 * gate))


def sigmoid_mul(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """x [T, n] times sigmoid(gate), [T, n] or one value a row [T, 1]."""
    return (x.float() * torch.sigmoid(gate.float())).to(x.dtype)


def position_scale(x: torch.Tensor, positions: torch.Tensor, floor_scale: float, attn_scale: float) -> torch.Tensor:
    """[T, heads, head_dim] times 1 + attn_scale * log(1 + floor((position + 1) / floor_scale)) of its row, [T] int64:
    the temperature of attention at a distance (Llama 4; arXiv 2501.19399)."""
    far = torch.floor((positions.float() + 1.0) / floor_scale)
    return (x.float() * (torch.log1p(far) * attn_scale + 1.0)[:, None, None]).to(x.dtype)
