"""A layer's share of a cache block."""

from __future__ import annotations

import torch

from headrace.cache.specs import CacheSpec, RecurrentState

CACHE_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
    "fp8": torch.float8_e4m3fn,
}
"""What keys and values may be kept in, by the names of ``KvCacheConfig.dtype``."""


def block_layout(spec: CacheSpec, kv_dtype: torch.dtype) -> tuple[int, torch.dtype]:
    """(how many numbers, their dtype): a state is float32, keys and values are ``kv_dtype``."""
    dtype = torch.float32 if isinstance(spec, RecurrentState) else kv_dtype
    return spec.bytes_per_block // dtype.itemsize, dtype
