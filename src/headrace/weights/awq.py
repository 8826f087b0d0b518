"""AWQ: 4 bits packed along the outputs, with a scale and a zero for each group of inputs.

Layout of a matrix [n, k], as AutoAWQ's version "gemm" writes it: ``P.qweight`` int32 [k, n / 8], whose bits hold
outputs 0, 2, 4, 6, 1, 3, 5, 7 of eight neighbours, the lowest bits first; ``P.qzeros`` int32 [groups, n / 8], alike;
``P.scales`` [groups, n]. A value is (number - zero) * scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from headrace.core.errors import CheckpointError, ModelError

from .few_bits import words
from .forms import Found, check_part
from .grouped import Grouped, Parts
from .safetensors import SafetensorsCheckpoint

_ENDS = (".qweight", ".qzeros", ".scales")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Of the outputs among a word's eight numbers."""


def find(stored: SafetensorsCheckpoint, config: Mapping[str, Any]) -> Found:
    """Raises ModelError for another layout, CheckpointError for parts that do not fit together."""
    for name, wanted in (("version", "gemm"), ("bits", 4)):
        found = config.get(name, wanted)
        if (found.lower() if isinstance(found, str) else found) != wanted:
            raise ModelError(f"{stored.path}: quantization_config.{name} of AWQ must be {wanted!r}, got {found!r}")
    names = frozenset(stored.names())
    bases = [name.removesuffix(".qweight") for name in names if name.endswith(".qweight")]
    forms = {f"{base}.weight": _form(stored, base) for base in bases}
    return Found(forms, frozenset(base + end for base in bases for end in _ENDS if base + end in names))


def _form(stored: SafetensorsCheckpoint, base: str) -> Grouped:
    packed, zeros, scales = (base + end for end in _ENDS)
    (n_groups, n_out), n_in = stored.shape(scales), stored.shape(packed)[0]
    check_part(stored, packed, (torch.int32,), (n_in, n_out // 8))
    check_part(stored, zeros, (torch.int32,), (n_groups, n_out // 8))
    check_part(stored, scales, _FLOATS, (n_groups, n_out))
    if n_out % 8 or n_in % n_groups:
        raise CheckpointError(
            f"{stored.file_of(packed)}: tensor {packed!r} of [{n_out}, {n_in}] in {n_groups} groups: expected a"
            " multiple of 8 outputs and of the groups"
        )
    return Grouped(
        shape=(n_out, n_in),
        label="AWQ in 4 bits",
        stored=packed,
        bits=4,
        group=n_in // n_groups,
        open=partial(_open, stored, base),
        zero=None,
        has_half_scales=stored.dtype(scales) == torch.float16,
    )


def _open(stored: SafetensorsCheckpoint, base: str) -> Parts:
    """Inputs are the rows here, so that a whole matrix is in memory, in its few bits."""
    packed, zeros, scales = (stored.tensor(base + end) for end in _ENDS)

    def outputs(tensor: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """[last - first, rows of the tensor]."""
        start, stop = first // 8, -(-last // 8)
        numbers = words(tensor[:, start:stop].contiguous(), 4).unflatten(1, (-1, 8))[:, :, _PLACES].flatten(1)
        return numbers[:, first - 8 * start : last - 8 * start].T.contiguous()

    return Parts(partial(outputs, packed), lambda first, last: scales[:, first:last].T, partial(outputs, zeros))
