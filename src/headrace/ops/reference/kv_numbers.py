"""Keys and values as numbers of one byte, with a scale for each token and head."""

from __future__ import annotations

import torch

MOST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""Largest number of each form."""
SCALE_BYTES = 4
SMALLEST_FP8 = 2.0**-6
"""What is smaller, rounded, is zero: there are no subnormals."""


def scales_of(cache: torch.Tensor, n: int) -> torch.Tensor:
    """The last ``n`` scales of each block of a cache [n_blocks, bytes]: [n_blocks, n] fp32, in its memory."""
    return cache[:, cache.shape[1] - SCALE_BYTES * n :].view(torch.float32)


def rounded(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """x [..., n] -> numbers [..., n] of ``dtype``, int8 or float8_e4m3fn, and scales [...] in fp32: x is about numbers
    times scale.

    A scale is the largest size of its n values / 127 or / 448: 0 if they are all zero, NaN if one is not finite.
    """
    x = x.float()
    most = MOST[dtype]
    largest = x.abs().amax(-1)
    scale = torch.where(largest.isfinite(), largest / most, torch.nan)
    by = scale.unsqueeze(-1)
    sizes = torch.where(by > 0, x / by, 0.0).clamp(-most, most)
    if dtype == torch.int8:
        return sizes.round().to(dtype), scale
    numbers = sizes.to(dtype).float()
    return torch.where(numbers.abs() < SMALLEST_FP8, 0.0, numbers).to(dtype), scale
