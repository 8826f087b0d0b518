"""A layer's share of a cache block."""

from __future__ import annotations

import torch

from headrace.cache.specs import CacheSpec, RecurrentState


def block_layout(spec: CacheSpec, kv_dtype: torch.dtype) -> tuple[int, torch.dtype]:
    """(how many numbers, their dtype): a state is float32, keys and values are ``kv_dtype``."""
    dtype = torch.float32 if isinstance(spec, RecurrentState) else kv_dtype
    return spec.bytes_per_block // dtype.itemsize, dtype
