"""Block-quantised GGUF rows to numbers.

Block layouts: ``ggml-common.h`` and ``ggml-quants.c`` of the ggml project (https://github.com/ggml-org/ggml). The
arithmetic is theirs (float32, one multiplication, then one addition), so results are equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .gguf_reader import GgmlType

_BLOCK = 32


def _scale(column: torch.Tensor) -> torch.Tensor:
    """Two bytes a block as a float16 number, in float32."""
    return column.contiguous().view(torch.float16).float()


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    """16 bytes a block to 32 numbers: the low halves are the first 16."""
    out = torch.empty(packed.shape[0], 2, 16, dtype=torch.float32)
    out[:, 0] = packed & 0x0F
    out[:, 1] = packed >> 4
    return out.view(-1, _BLOCK)


def _q4_0(raw: torch.Tensor) -> torch.Tensor:
    blocks = raw.view(-1, 18)
    return _nibbles(blocks[:, 2:]).sub_(8).mul_(_scale(blocks[:, :2]))


def _q4_1(raw: torch.Tensor) -> torch.Tensor:
    blocks = raw.view(-1, 20)
    return _nibbles(blocks[:, 4:]).mul_(_scale(blocks[:, :2])).add_(_scale(blocks[:, 2:4]))


def _q8_0(raw: torch.Tensor) -> torch.Tensor:
    blocks = raw.view(-1, 34)
    out = torch.empty(blocks.shape[0], _BLOCK, dtype=torch.float32)
    out.copy_(blocks.view(torch.int8)[:, 2:])
    return out.mul_(_scale(blocks[:, :2]))


def _stored_as(dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda raw: raw.view(dtype)


_FORMS: dict[str, tuple[torch.dtype, Callable[[torch.Tensor], torch.Tensor]]] = {
    "F32": (torch.float32, _stored_as(torch.float32)),
    "F16": (torch.float16, _stored_as(torch.float16)),
    "BF16": (torch.bfloat16, _stored_as(torch.bfloat16)),
    "Q4_0": (torch.float32, _q4_0),
    "Q4_1": (torch.float32, _q4_1),
    "Q8_0": (torch.float32, _q8_0),
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
