"""Forms of GGUF tensors: their blocks to numbers and scales, and to values.

Block layouts: ``ggml-common.h`` and ``ggml-quants.c`` of the ggml project (https://github.com/ggml-org/ggml). The
arithmetic of values is theirs (float32, one multiplication, then one addition), so they are equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from headrace.quant.formats import BlockFormat, BlockRows, decode, powers

from . import gguf_k_quants
from .gguf_bits import Parts, fields, half, iq4_values
from .gguf_reader import GgmlType


def _q4_0(raw: torch.Tensor) -> Parts:
    blocks = raw.view(-1, 18)
    return Parts(fields(blocks[:, 2:], 4, run=16), half(blocks[:, :2]))


def _q4_1(raw: torch.Tensor) -> Parts:
    blocks = raw.view(-1, 20)
    return Parts(fields(blocks[:, 4:], 4, run=16), half(blocks[:, :2]), half(blocks[:, 2:4]))


def _q5_0(raw: torch.Tensor) -> Parts:
    blocks = raw.view(-1, 22)
    numbers = fields(blocks[:, 6:], 4, run=16) | (fields(blocks[:, 2:6], 1, run=1) << 4)
    return Parts(numbers, half(blocks[:, :2]))


def _q5_1(raw: torch.Tensor) -> Parts:
    blocks = raw.view(-1, 24)
    numbers = fields(blocks[:, 8:], 4, run=16) | (fields(blocks[:, 4:8], 1, run=1) << 4)
    return Parts(numbers, half(blocks[:, :2]), half(blocks[:, 2:4]))


def _q8_0(raw: torch.Tensor) -> Parts:
    blocks = raw.view(-1, 34)
    return Parts(blocks[:, 2:] ^ 0x80, half(blocks[:, :2]))


def _iq4_nl(raw: torch.Tensor) -> Parts:
    blocks = raw.view(-1, 18)
    return Parts(iq4_values(fields(blocks[:, 2:], 4, run=16)), half(blocks[:, :2]))


def _mxfp4(raw: torch.Tensor) -> Parts:
    blocks = raw.view(-1, 17)
    return Parts(fields(blocks[:, 1:], 4, run=16), powers(blocks[:, :1]))


@dataclass(frozen=True, slots=True)
class _Form:
    format: BlockFormat
    parts: Callable[[torch.Tensor], Parts]


_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

_BLOCKS = {
    "Q4_0": _Form(BlockFormat(4, 8), _q4_0),
    "Q4_1": _Form(BlockFormat(4, 0, has_minimum=True), _q4_1),
    "Q5_0": _Form(BlockFormat(8, 16), _q5_0),
    "Q5_1": _Form(BlockFormat(8, 0, has_minimum=True), _q5_1),
    "Q8_0": _Form(BlockFormat(8, 128), _q8_0),
    "Q2_K": _Form(BlockFormat(4, 0, 16, has_minimum=True, has_wide_scales=True), gguf_k_quants.q2_k),
    "Q3_K": _Form(BlockFormat(4, 4, 16, has_wide_scales=True), gguf_k_quants.q3_k),
    "Q4_K": _Form(BlockFormat(4, 0, has_minimum=True, has_wide_scales=True), gguf_k_quants.q4_k),
    "Q5_K": _Form(BlockFormat(8, 0, has_minimum=True, has_wide_scales=True), gguf_k_quants.q5_k),
    "Q6_K": _Form(BlockFormat(8, 32, 16, has_wide_scales=True), gguf_k_quants.q6_k),
    "IQ4_NL": _Form(BlockFormat(8, 128), _iq4_nl),
    "IQ4_XS": _Form(BlockFormat(8, 128, has_wide_scales=True), gguf_k_quants.iq4_xs),
    "MXFP4": _Form(BlockFormat(4, 0, has_wide_scales=True, codes="e2m1"), _mxfp4),
}

SUPPORTED = (*_PLAIN, *_BLOCKS)


def is_supported(form: GgmlType) -> bool:
    return form.name in SUPPORTED


def block_format(form: GgmlType) -> BlockFormat | None:
    """The format that holds the blocks of a form without loss; None for floats."""
    return _BLOCKS[form.name].format if form.name in _BLOCKS else None


def dequantised_dtype(form: GgmlType) -> torch.dtype:
    """What ``dequantise`` gives: the stored dtype, or float32 for block forms."""
    return _PLAIN.get(form.name, torch.float32)


def dequantise(raw: torch.Tensor, form: GgmlType) -> torch.Tensor:
    """``raw``: contiguous uint8, whole blocks. Returns their elements in order, flat."""
    if form.name in _PLAIN:
        return raw.view(_PLAIN[form.name])
    found = _BLOCKS[form.name]
    parts = found.parts(raw)
    values = decode(parts.numbers, found.format.codes).sub_(found.format.offset).view(*parts.scales.shape, -1)
    values.mul_(parts.scales.float().unsqueeze(2))
    if parts.minima is not None:
        values.add_(parts.minima.float().unsqueeze(2))
    return values.view(-1)


def block_rows(raw: torch.Tensor, form: GgmlType, n_rows: int) -> BlockRows:
    """``raw``: contiguous uint8, ``n_rows`` rows of whole blocks of a form that has a ``block_format``."""
    found = _BLOCKS[form.name]
    parts = found.parts(raw)
    minima = None if parts.minima is None else parts.minima.reshape(n_rows, -1)
    return BlockRows(found.format, parts.numbers.reshape(n_rows, -1), parts.scales.reshape(n_rows, -1), minima)
