"""Rows as the core takes them: any distance apart, dense within."""

from __future__ import annotations

import torch


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """x [T, n] or [T, heads, n] itself where each row is dense, else a dense copy."""
    dense = x.stride(-1) == 1 and (x.dim() == 2 or x.stride(1) == x.shape[2])
    return x if dense else x.contiguous()
