"""FP8 (e4m3) with scales: of a whole matrix, of each output, or of each block of values (DeepSeek-V3, Qwen3-FP8).

``P.weight`` is e4m3 [n, k]. Its scales, which values are multiplied with whatever the name says, are float:
``P.weight_scale`` of one value, of [n] or of [n, 1], or ``P.weight_scale_inv`` [ceil(n / a), ceil(k / b)] for blocks of
a x b, the last ones of which may be smaller.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from headrace.core.errors import CheckpointError, ModelError

from .forms import Found
from .grouped import Grouped, Parts
from .safetensors import SafetensorsCheckpoint

SCALES = ("weight_scale_inv", "weight_scale")
UNUSED = (
    "input_scale", "input_scale_ub", "activation_scale", "output_scale", "k_scale", "v_scale", "q_scale", "kv_scale",
)  # fmt: skip
"""Last parts of names: scales of what is not rounded here, activations and the cache."""


def find(stored: SafetensorsCheckpoint, config: Mapping[str, Any]) -> Found:
    """Raises ModelError for another layout, CheckpointError for FP8 without scales and for scales without FP8."""
    block = _block_size(config, stored)
    names = frozenset(stored.names())
    forms: dict[str, Grouped] = {}
    hidden = {name for name in names if name.rpartition(".")[2] in UNUSED}
    for name in names - hidden:
        scales = scales_of(stored, names, name)
        if scales:
            forms[name] = matrix(stored, name, scales, block, "FP8")
            hidden |= {name, scales}
    return Found(forms, frozenset(hidden))


def scales_of(stored: SafetensorsCheckpoint, names: frozenset[str], name: str) -> str:
    """The name of the scales of tensor ``name``, empty where it is no FP8. Raises CheckpointError for half a pair."""
    base = name.removesuffix("weight")
    found = next((base + end for end in SCALES if base != name and base + end in names), "")
    is_fp8 = stored.dtype(name) == torch.float8_e4m3fn
    if is_fp8 != bool(found):
        raise CheckpointError(
            f"{stored.file_of(name)}: tensor {name!r} is {stored.dtype(name)} and"
            f" {'has' if found else 'has no'} {' or '.join(SCALES)}; a weight in float8_e4m3fn has one, and no other"
        )
    return found


def matrix(stored: SafetensorsCheckpoint, name: str, scales: str, block: tuple[int, int] | None, label: str) -> Grouped:
    """``block``: what a value of scales in two dimensions is for; None: there are none of these."""
    shape, found = stored.shape(name), stored.shape(scales)
    if len(shape) != 2:
        raise CheckpointError(f"{stored.file_of(name)}: tensor {name!r}: FP8 is read as [n, k], found {list(shape)}")
    n_out, n_in = shape
    kinds = {(): (n_out, n_in), (n_out,): (1, n_in), (n_out, 1): (1, n_in)}
    if math.prod(found) == 1:
        sizes = (n_out, n_in)
    elif block is not None and found == tuple(-(-size // each) for size, each in zip(shape, block, strict=True)):
        sizes = block
    elif found in kinds:
        sizes = kinds[found]
    else:
        blocks = f", or for blocks of {list(block)}" if block is not None else ""
        raise CheckpointError(
            f"{stored.file_of(name)}: tensor {name!r} of {list(shape)} has scales of {list(found)}; expected one, one"
            f" for each of {n_out} rows{blocks}"
        )
    return Grouped(
        shape=(n_out, n_in),
        label=f"{label} with scales of {_what(sizes, n_out, n_in)}",
        stored=name,
        bits=8,
        group=sizes[1],
        open=partial(_open, stored, name, scales, sizes),
        codes="e4m3",
        has_half_scales=stored.dtype(scales) == torch.float16,
    )


def _what(sizes: tuple[int, int], n_out: int, n_in: int) -> str:
    if sizes[1] < n_in or 1 < sizes[0] < n_out:
        return f"{sizes[0]} x {sizes[1]} values"
    return "rows" if sizes[0] == 1 else "tensors"


def _open(stored: SafetensorsCheckpoint, name: str, scales: str, sizes: tuple[int, int]) -> Parts:
    grid = stored.tensor(scales).float()
    grid = grid.reshape(-1, 1) if grid.ndim < 2 else grid

    def spread(first: int, last: int) -> torch.Tensor:
        return grid[torch.arange(first, last) // sizes[0]]

    return Parts(lambda first, last: stored.part(name, first, last).view(torch.uint8), spread)


def _block_size(config: Mapping[str, Any], stored: SafetensorsCheckpoint) -> tuple[int, int] | None:
    size, form = config.get("weight_block_size"), config.get("fmt", "e4m3")
    if form != "e4m3":
        raise ModelError(f"{stored.path}: quantization_config.fmt must be 'e4m3', got {form!r}")
    if size is None:
        return None
    if not isinstance(size, list) or len(size) != 2 or not all(type(n) is int and n > 0 for n in size):
        raise ModelError(f"{stored.path}: quantization_config.weight_block_size must be two sizes, got {size!r}")
    return size[0], size[1]
