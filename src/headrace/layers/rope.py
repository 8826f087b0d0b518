"""Rotary position embedding: the frequencies of every kind. The rotation itself is an operator.

Formulas as in the papers named, and as transformers computes them: inv_i = theta^(-2 i / r) for i < r / 2, in fp32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .base import BuildContext, Layer


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Which rope a model uses. Fields that a kind does not use keep their defaults."""

    kind: str
    """default, linear, dynamic, llama3, yarn or longrope."""
    theta: float
    max_positions: int
    """Of the model: ``max_position_embeddings``."""
    partial: float = 1.0
    """Share of each head that is rotated, from its first value on."""
    factor: float = 1.0
    """How much further than trained the positions reach."""
    original_max_positions: int = 0
    """Positions in pretraining (llama3, yarn, longrope)."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    """Divisor of each frequency for sequences up to ``original_max_positions`` (longrope)."""
    long_factors: tuple[float, ...] = ()
    """And beyond."""


class Rope(Layer):
    """Angles of a step's rows, made once a step and handed to every layer that uses this rope.

    Dynamic rope stretches with the length of a sequence, and long rope has one list of factors for short sequences and
    one for long ones. Both are fixed here, by the engine's maximum length (``BuildContext.max_seq_len``): keys already
    in the cache cannot be turned anew, and a frequency that depended on the present length would make cached prefixes
    useless. Dynamic rope is the same for all lengths up to ``max_positions``. Long rope takes the long list when
    sequences may become longer than ``original_max_positions``, for short sequences too; whoever wants the short list
    sets the maximum length to ``original_max_positions`` or less.
    """

    def __init__(self, ctx: BuildContext, spec: RopeSpec, head_dim: int) -> None:
        dim = int(head_dim * spec.partial)
        inv_freq, self._factor = KINDS[spec.kind](spec, dim, ctx.max_seq_len or spec.max_positions)
        self._inv_freq = inv_freq.to(ctx.device)
        self._angles = ctx.ops.rope_angles

    def __call__(self, positions: torch.Tensor) -> Any:
        """[T] int64 -> what the ``rope`` operator takes."""
        return self._angles(positions, self._inv_freq, self._factor)


Frequencies = tuple[torch.Tensor, float]
"""Inverse frequencies [r / 2] fp32, and the factor of cos and sin."""


def _powers(theta: float, dim: int) -> torch.Tensor:
    """theta^(2 i / dim)."""
    return theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def default(spec: RopeSpec, dim: int, max_seq_len: int) -> Frequencies:
    """arXiv 2104.09864."""
    return 1.0 / _powers(spec.theta, dim), 1.0


def linear(spec: RopeSpec, dim: int, max_seq_len: int) -> Frequencies:
    """Positions divided by the factor (arXiv 2306.15595)."""
    return 1.0 / _powers(spec.theta, dim) / spec.factor, 1.0


def dynamic(spec: RopeSpec, dim: int, max_seq_len: int) -> Frequencies:
    """NTK-aware: theta grows with the length S, theta * (f S / M - (f - 1))^(r / (r - 2)), S at least M."""
    stretch = spec.factor * max(max_seq_len, spec.max_positions) / spec.max_positions - (spec.factor - 1.0)
    return 1.0 / _powers(spec.theta * stretch ** (dim / (dim - 2)), dim), 1.0


def llama3(spec: RopeSpec, dim: int, max_seq_len: int) -> Frequencies:
    """Llama 3.1: long wavelengths are divided by the factor, short ones kept, those between blended."""
    inv = 1.0 / _powers(spec.theta, dim)
    turns = spec.original_max_positions * inv / (2 * math.pi)
    between = spec.high_freq_factor - spec.low_freq_factor
    # Llama 4 Scout has a step where others have a ramp.
    smooth = ((turns - spec.low_freq_factor) / between).clamp(0.0, 1.0) if between else turns > spec.low_freq_factor
    smooth = smooth.float()
    return inv * (smooth + (1.0 - smooth) / spec.factor), 1.0


def yarn(spec: RopeSpec, dim: int, max_seq_len: int) -> Frequencies:
    """YaRN (arXiv 2309.00071): a ramp over the dimensions from kept to divided, and a factor on cos and sin."""

    def dim_of(n_turns: float) -> float:
        turns = spec.original_max_positions / (n_turns * 2 * math.pi)
        return dim * math.log(turns) / (2 * math.log(spec.theta))

    low, high = dim_of(spec.beta_fast), dim_of(spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = (torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low or 1e-3)
    ramp = ramp.clamp(0.0, 1.0)
    powers = _powers(spec.theta, dim)
    inv = ramp / (spec.factor * powers) + (1.0 - ramp) / powers
    return inv, spec.attention_factor if spec.attention_factor is not None else _yarn_attention_factor(spec)


def longrope(spec: RopeSpec, dim: int, max_seq_len: int) -> Frequencies:
    """LongRoPE (arXiv 2402.13753): a divisor for each frequency, and a factor on cos and sin."""
    factors = spec.long_factors if max_seq_len > spec.original_max_positions else spec.short_factors
    inv = 1.0 / (torch.tensor(factors, dtype=torch.float32) * _powers(spec.theta, dim))
    if spec.attention_factor is not None:
        return inv, spec.attention_factor
    return inv, math.sqrt(1.0 + max(math.log(spec.factor), 0.0) / math.log(spec.original_max_positions))


def yarn_gain(factor: float, mscale: float) -> float:
    """How much YaRN sharpens attention for a stretch by ``factor``."""
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0


def _yarn_attention_factor(spec: RopeSpec) -> float:
    if spec.mscale and spec.mscale_all_dim:
        return yarn_gain(spec.factor, spec.mscale) / yarn_gain(spec.factor, spec.mscale_all_dim)
    return yarn_gain(spec.factor, 1.0)


KINDS: dict[str, Callable[[RopeSpec, int, int], Frequencies]] = {
    "default": default,
    "linear": linear,
    "dynamic": dynamic,
    "llama3": llama3,
    "yarn": yarn,
    "longrope": longrope,
}
"""Kind -> its frequencies, for (spec, rotated values of a head, longest sequence)."""
