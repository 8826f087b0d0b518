"""Rotary position embedding, HALF layout: element i is rotated with element i + r/2 (arXiv 2104.09864)."""

from __future__ import annotations

from typing import NamedTuple

import torch


class RopeAngles(NamedTuple):
    """Cosines and sines of a step's rows, made once a step and used by every layer."""

    cos: torch.Tensor
    """[T, 1, r] fp32; both halves hold the same."""
    sin: torch.Tensor
    """[T, 1, r] fp32; the first half negated, so that the rotation is x * cos + roll(x) * sin."""


def rope_angles(positions: torch.Tensor, inv_freq: torch.Tensor, factor: float) -> RopeAngles:
    """Angles position * inv_freq in fp32, their cos and sin times ``factor``.

    Args:
        positions: [T] int64.
        inv_freq: [r / 2] fp32.
    """
    angles = (positions.to(torch.float32).unsqueeze(1) * inv_freq).unsqueeze(1)
    cos, sin = angles.cos() * factor, angles.sin() * factor
    return RopeAngles(torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))


def rope(x: torch.Tensor, angles: RopeAngles) -> torch.Tensor:
    """Rotates the first r of each head's values, in fp32; the rest passes through.

    Args:
        x: [T, n, d], d >= r.

    Returns:
        A new tensor of the same shape and dtype.
    """
    r = angles.cos.shape[-1]
    head = x[..., :r].float()
    turned = torch.addcmul(head * angles.cos, head.roll(r // 2, -1), angles.sin).to(x.dtype)
    return turned if r == x.shape[-1] else torch.cat((turned, x[..., r:]), -1)
