"""Numbers of a few bits out of the words and bytes of safetensors."""

from __future__ import annotations

import torch


def words(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 [..., m] to uint8 [..., m * 32 / bits], the lowest bits of a word first."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    # What the sign brings in from above is cut off.
    return ((packed.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)).to(torch.uint8).flatten(-2)


def pairs(packed: torch.Tensor) -> torch.Tensor:
    """uint8 [..., m] to [..., 2 m] of 4 bits, the low ones first."""
    return torch.stack((packed & 15, packed >> 4), -1).flatten(-2)


def pack(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 [..., m] to int32 [..., m * bits / 32]: what ``words`` undoes."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int64)
    whole = (numbers.long().unflatten(-1, (-1, 32 // bits)) << shifts).sum(-1)
    # To the signed number of the same 32 bits.
    return (whole - ((whole >> 31) << 32)).to(torch.int32)
