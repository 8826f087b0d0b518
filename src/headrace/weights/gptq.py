"""GPTQ: whole numbers packed along the inputs, with a scale and a zero for each group of inputs.

Layout of a matrix [n, k] in b bits, as AutoGPTQ and GPTQModel write it: ``P.qweight`` int32 [k b / 32, n], the lowest
bits first; ``P.qzeros`` int32 [groups, n b / 32], from whose words version 1 has taken one for each zero; ``P.scales``
[groups, n]; ``P.g_idx`` int32 [k], the group of each input. A value is (number - zero) * scale.
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

_ENDS = (".qweight", ".qzeros", ".scales", ".g_idx")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_VERSIONS = {"gptq": 1, "gptq_v2": 0}
"""What each zero lacks."""


def find(stored: SafetensorsCheckpoint, config: Mapping[str, Any]) -> Found:
    """Raises ModelError for another layout, CheckpointError for parts that do not fit together."""
    version = config.get("checkpoint_format") or config.get("format") or "gptq"
    if version not in _VERSIONS:
        raise ModelError(
            f"{stored.path}: quantization_config.checkpoint_format must be one of {', '.join(_VERSIONS)},"
            f" got {version!r}"
        )
    names = frozenset(stored.names())
    bases = [name.removesuffix(".qweight") for name in names if name.endswith(".qweight")]
    is_symmetric = bool(config.get("sym", True))
    forms = {f"{base}.weight": _form(stored, names, base, _VERSIONS[version], is_symmetric) for base in bases}
    return Found(forms, frozenset(base + end for base in bases for end in _ENDS if base + end in names))


def _form(stored: SafetensorsCheckpoint, names: frozenset[str], base: str, added: int, is_symmetric: bool) -> Grouped:
    packed, zeros, scales, index = (base + end for end in _ENDS)
    n_groups, n_out = stored.shape(scales)
    height = stored.shape(packed)[0]
    groups = stored.tensor(index) if index in names else None
    # Without an index: whichever number of bits the zeros are in.
    n_in = len(groups) if groups is not None else height * n_out // stored.shape(zeros)[1]
    bits = 32 * height // n_in
    if bits not in (4, 8) or 32 * height != bits * n_in or 32 % bits:
        raise CheckpointError(
            f"{stored.file_of(packed)}: tensor {packed!r} holds {32 * height / n_in:g} bits for each of {n_in} inputs;"
            " GPTQ is read in 4 and 8 bits"
        )
    check_part(stored, packed, (torch.int32,), (height, n_out))
    check_part(stored, zeros, (torch.int32,), (n_groups, n_out * bits // 32))
    check_part(stored, scales, _FLOATS, (n_groups, n_out))
    group = -(-n_in // n_groups)
    columns = None
    if groups is not None:
        if not 0 <= int(groups.min()) <= int(groups.max()) < n_groups:
            raise CheckpointError(f"{stored.file_of(index)}: tensor {index!r} names groups beyond the {n_groups}")
        columns = None if torch.equal(groups.long(), torch.arange(n_in) // group) else groups
    return Grouped(
        shape=(n_out, n_in),
        label=f"GPTQ in {bits} bits",
        stored=packed,
        bits=bits,
        group=group,
        open=partial(_open, stored, base, bits, added),
        zero=1 << (bits - 1) if is_symmetric else None,
        has_half_scales=stored.dtype(scales) == torch.float16,
        columns=columns,
    )


def _open(stored: SafetensorsCheckpoint, base: str, bits: int, added: int) -> Parts:
    """Inputs are the rows here, so that a whole matrix is in memory, in its few bits."""
    packed, zeros, scales = (stored.tensor(base + end) for end in _ENDS[:3])
    # To the words: a zero of 0 has borrowed from the one above it.
    numbers_of_zeros = words(zeros + added * sum(1 << place for place in range(0, 32, bits)), bits)

    def numbers(first: int, last: int) -> torch.Tensor:
        return words(packed[:, first:last].T.contiguous(), bits)

    return Parts(
        numbers, lambda first, last: scales[:, first:last].T, lambda first, last: numbers_of_zeros[:, first:last].T
    )
