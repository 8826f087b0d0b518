"""ModelOpt: FP8 with a scale for a matrix, and NVFP4.

NVFP4 of a matrix [n, k]: ``P.weight`` uint8 [n, k / 2], two values of 4 bits (e2m1), the first in the low bits;
``P.weight_scale`` e4m3 [n, k / 16], for each 16 inputs; ``P.weight_scale_2`` float32, for all. A value is e2m1 times
(scale * scale_2). ``P.pre_quant_scale`` [k], where there is one, is what inputs are multiplied with.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from headrace.core.errors import CheckpointError, ModelError

from . import fp8
from .few_bits import pairs
from .forms import Found, check_part
from .grouped import Grouped, Parts
from .safetensors import SafetensorsCheckpoint

_ALGORITHMS = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "NVFP4", "NVFP4_AWQ", "W4A16_NVFP4", "MIXED_PRECISION")
_SMALL = 16
"""Values of a scale of NVFP4."""


def find(stored: SafetensorsCheckpoint, config: Mapping[str, Any]) -> Found:
    """Raises ModelError for another algorithm, CheckpointError for parts that do not fit together."""
    algorithm = config.get("quant_algo")
    if algorithm not in _ALGORITHMS:
        raise ModelError(
            f"{stored.path}: quant_algo of ModelOpt must be one of {', '.join(_ALGORITHMS)}, got {algorithm!r}"
        )
    names = frozenset(stored.names())
    forms: dict[str, Grouped] = {}
    hidden = {name for name in names if name.rpartition(".")[2] in fp8.UNUSED}
    for name in names:
        base = name.removesuffix("weight")
        parts = [base + end for end in ("weight_scale", "weight_scale_2", "pre_quant_scale")]
        if name == base or name in hidden or parts[0] not in names:
            continue
        factors = stored.tensor(parts[2]) if parts[2] in names else None
        if parts[1] in names:
            forms[name] = nvfp4(
                stored, name, name, parts[0], stored.tensor(parts[1]).float().reshape(()), factors, "ModelOpt NVFP4"
            )
        else:
            forms[name] = fp8.matrix(stored, name, fp8.scales_of(stored, names, name), None, "ModelOpt FP8")
        hidden |= {name, *(part for part in parts if part in names)}
    return Found(forms, frozenset(hidden))


def nvfp4(
    stored: SafetensorsCheckpoint,
    name: str,
    packed: str,
    scales: str,
    factor: torch.Tensor,
    factors: torch.Tensor | None,
    label: str,
) -> Grouped:
    """Tensor ``name``. ``factor``: of all scales; ``factors``: of inputs, or None."""
    if len(stored.shape(packed)) != 2:
        raise CheckpointError(
            f"{stored.file_of(packed)}: tensor {packed!r}: NVFP4 is read as [n, k / 2], found"
            f" {list(stored.shape(packed))}"
        )
    n_out, n_in = stored.shape(packed)[0], 2 * stored.shape(packed)[1]
    check_part(stored, packed, (torch.uint8,), (n_out, n_in // 2))
    check_part(stored, scales, (torch.float8_e4m3fn,), (n_out, -(-n_in // _SMALL)))
    if factors is not None and factors.shape != (n_in,):
        raise CheckpointError(
            f"{stored.path}: {name!r}: expected {n_in} factors of inputs, found {list(factors.shape)}"
        )
    return Grouped(
        shape=(n_out, n_in),
        label=label,
        stored=packed,
        bits=4,
        group=_SMALL,
        open=partial(_open, stored, packed, scales, factor),
        codes="e2m1",
        factors=factors,
    )


def _open(stored: SafetensorsCheckpoint, packed: str, scales: str, factor: torch.Tensor) -> Parts:
    return Parts(
        lambda first, last: pairs(stored.part(packed, first, last)),
        lambda first, last: stored.part(scales, first, last).float() * factor,
    )
