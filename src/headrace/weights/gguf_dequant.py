"""Block-quantised GGUF rows to numbers.

Block layouts: ``ggml-common.h`` and ``ggml-quants.c`` of the ggml project (https://github.com/ggml-org/ggml). The
arithmetic is theirs (float32, one multiplication, then one addition), so results are equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from . import gguf_k_quants
from .gguf_bits import fields, half, iq4_values
from .gguf_reader import GgmlType

_BLOCK = 32


def _q4_0(raw: torch.Tensor) -> torch.Tensor:
    blocks = raw.view(-1, 18)
    return fields(blocks[:, 2:], 4, run=16).float().sub_(8).mul_(half(blocks[:, :2]))


def _q4_1(raw: torch.Tensor) -> torch.Tensor:
    blocks = raw.view(-1, 20)
    return fields(blocks[:, 4:], 4, run=16).float().mul_(half(blocks[:, :2])).add_(half(blocks[:, 2:4]))


def _q5_0(raw: torch.Tensor) -> torch.Tensor:
    blocks = raw.view(-1, 22)
    numbers = fields(blocks[:, 6:], 4, run=16) | (fields(blocks[:, 2:6], 1, run=1) << 4)
    return numbers.float().sub_(16).mul_(half(blocks[:, :2]))


def _q5_1(raw: torch.Tensor) -> torch.Tensor:
    blocks = raw.view(-1, 24)
    numbers = fields(blocks[:, 8:], 4, run=16) | (fields(blocks[:, 4:8], 1, run=1) << 4)
    return numbers.float().mul_(half(blocks[:, :2])).add_(half(blocks[:, 2:4]))


def _q8_0(raw: torch.Tensor) -> torch.Tensor:
    blocks = raw.view(-1, 34)
    out = torch.empty(blocks.shape[0], _BLOCK, dtype=torch.float32)
    out.copy_(blocks.view(torch.int8)[:, 2:])
    return out.mul_(half(blocks[:, :2]))


def _iq4_nl(raw: torch.Tensor) -> torch.Tensor:
    blocks = raw.view(-1, 18)
    return iq4_values(fields(blocks[:, 2:], 4, run=16)).mul_(half(blocks[:, :2]))


def _stored_as(dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda raw: raw.view(dtype)


_FORMS: dict[str, tuple[torch.dtype, Callable[[torch.Tensor], torch.Tensor]]] = {
    "F32": (torch.float32, _stored_as(torch.float32)),
    "F16": (torch.float16, _stored_as(torch.float16)),
    "BF16": (torch.bfloat16, _stored_as(torch.bfloat16)),
    "Q4_0": (torch.float32, _q4_0),
    "Q4_1": (torch.float32, _q4_1),
    "Q5_0": (torch.float32, _q5_0),
    "Q5_1": (torch.float32, _q5_1),
    "Q8_0": (torch.float32, _q8_0),
    "Q2_K": (torch.float32, gguf_k_quants.q2_k),
    "Q3_K": (torch.float32, gguf_k_quants.q3_k),
    "Q4_K": (torch.float32, gguf_k_quants.q4_k),
    "Q5_K": (torch.float32, gguf_k_quants.q5_k),
    "Q6_K": (torch.float32, gguf_k_quants.q6_k),
    "IQ4_NL": (torch.float32, _iq4_nl),
    "IQ4_XS": (torch.float32, gguf_k_quants.iq4_xs),
}

SUPPORTED = tuple(_FORMS)


def is_supported(form: GgmlType) -> bool:
    return form.name in _FORMS


def dequantised_dtype(form: GgmlType) -> torch.dtype:
    """What ``dequantise`` gives: the stored dtype, or float32 for block forms."""
    return _FORMS[form.name][0]


def dequantise(raw: torch.Tensor, form: GgmlType) -> torch.Tensor:
    """``raw``: contiguous uint8, whole blocks. Returns their elements in order, flat."""
    return _FORMS[form.name][1](raw).reshape(-1)
