"""Numbers of a few bits out of the bytes of GGUF blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

_IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""What the 16 codes of the IQ4 forms stand for (``kvalues_iq4nl`` in ``ggml-common.h``)."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What blocks hold: a value is (number - offset) * scale + minimum, with the offset of the form."""

    numbers: torch.Tensor
    """[n, block] uint8."""
    scales: torch.Tensor
    """[n, groups of a block], float16 as stored, or float32 where the form makes them out of two numbers."""
    minima: torch.Tensor | None = None
    """The same, where the form has them."""


def half(column: torch.Tensor) -> torch.Tensor:
    """Two bytes a block ``[n, 2]`` as a float16 number ``[n, 1]``."""
    return column.contiguous().view(torch.float16)


def fields(packed: torch.Tensor, bits: int, run: int) -> torch.Tensor:
    """``[n, bytes]`` uint8 to ``[n, bytes * 8 / bits]`` uint8: every byte holds ``8 / bits`` numbers.

    ``run`` bytes belong together: their lowest ``bits`` are ``run`` successive numbers, the bits above are the ``run``
    numbers that follow, and so on.
    """
    n = packed.shape[0]
    # Eight bytes at a time: bits that a shift brings over from the byte above are masked off.
    word = torch.int64 if run % 8 == 0 else torch.uint8
    runs = packed.clone(memory_format=torch.contiguous_format).view(n, -1, run).view(word)
    mask = int.from_bytes([(1 << bits) - 1] * word.itemsize, "little")
    out = torch.empty(n, runs.shape[1], 8 // bits, runs.shape[2], dtype=word)
    for place in range(8 // bits):
        torch.bitwise_and(runs >> (bits * place), mask, out=out[:, :, place])
    return out.view(torch.uint8).view(n, -1)


def iq4_values(codes: torch.Tensor) -> torch.Tensor:
    """Codes below 16 to the numbers that they stand for, and 128: uint8."""
    table = torch.tensor(_IQ4_VALUES, dtype=torch.int16).add_(128).to(torch.uint8)
    return table.index_select(0, codes.reshape(-1).int()).view(codes.shape)
