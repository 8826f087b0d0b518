"""GGUF superblocks of 256 elements to numbers and scales: the K forms and IQ4_XS.

A superblock has one or two float16 scales, and sub-blocks of 16 or 32 elements with small integer scales of their own.
Layouts as in ``gguf_blocks``.
"""

from __future__ import annotations

import torch

from .gguf_bits import Parts, fields, half, iq4_values

_SCALE_OFFSET = 32
"""Q3_K and IQ4_XS store their 6-bit scales this much too high."""


def q2_k(raw: torch.Tensor) -> Parts:
    blocks = raw.view(-1, 84)
    scale = _wide(blocks[:, 80:82]) * (blocks[:, :16] & 0x0F).float()
    low = _wide(blocks[:, 82:84]) * (blocks[:, :16] >> 4).float()
    return Parts(fields(blocks[:, 16:80], 2, run=32), scale, low.neg_())


def q3_k(raw: torch.Tensor) -> Parts:
    blocks = raw.view(-1, 110)
    scales = fields(blocks[:, 96:104], 4, run=8) | (fields(blocks[:, 104:108], 2, run=4) << 4)
    numbers = fields(blocks[:, 32:96], 2, run=32) | (fields(blocks[:, :32], 1, run=32) << 2)
    return Parts(numbers, _wide(blocks[:, 108:110]) * scales.float().sub_(_SCALE_OFFSET))


def q4_k(raw: torch.Tensor) -> Parts:
    blocks = raw.view(-1, 144)
    return Parts(fields(blocks[:, 16:], 4, run=32), *_scales_and_minima(blocks))


def q5_k(raw: torch.Tensor) -> Parts:
    blocks = raw.view(-1, 176)
    numbers = fields(blocks[:, 48:], 4, run=32) | (fields(blocks[:, 16:48], 1, run=32) << 4)
    return Parts(numbers, *_scales_and_minima(blocks))


def q6_k(raw: torch.Tensor) -> Parts:
    blocks = raw.view(-1, 210)
    scale = _wide(blocks[:, 208:]) * blocks[:, 192:208].view(torch.int8).float()
    return Parts(fields(blocks[:, :128], 4, run=64) | (fields(blocks[:, 128:192], 2, run=32) << 4), scale)


def iq4_xs(raw: torch.Tensor) -> Parts:
    blocks = raw.view(-1, 136)
    scales = fields(blocks[:, 4:8], 4, run=1) | (fields(blocks[:, 2:4], 2, run=1) << 4)
    codes = fields(blocks[:, 8:], 4, run=16)
    return Parts(iq4_values(codes), _wide(blocks[:, :2]) * scales.float().sub_(_SCALE_OFFSET))


def _wide(column: torch.Tensor) -> torch.Tensor:
    return half(column).float()


def _scales_and_minima(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and minimum of the 8 sub-blocks of Q4_K and Q5_K, float32 ``[n, 8]``.

    Bytes 4 to 16 hold 6-bit numbers: four scales and four minima in the low bits of the first eight bytes; of the other
    four of each kind the low halves are in the last four bytes, the high two bits on top of the first eight. What is
    stored for a minimum is its size: minima are negative.
    """
    scales, minima, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scale = torch.cat((scales & 0x3F, (rest & 0x0F) | ((scales >> 2) & 0x30)), 1)
    low = torch.cat((minima & 0x3F, (rest >> 4) | ((minima >> 2) & 0x30)), 1)
    return _wide(blocks[:, :2]) * scale.float(), (_wide(blocks[:, 2:4]) * low.float()).neg_()
