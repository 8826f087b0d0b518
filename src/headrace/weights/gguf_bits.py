"""Numbers of a few bits out of the bytes of GGUF blocks."""

from __future__ import annotations

import torch

_IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""What the 16 codes of the IQ4 forms stand for (``kvalues_iq4nl`` in ``ggml-common.h``)."""


def half(column: torch.Tensor) -> torch.Tensor:
    """Two bytes a block ``[n, 2]`` as a float16 number, in float32 ``[n, 1]``."""
    return column.contiguous().view(torch.float16).float()


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
    """Codes below 16 to the float32 numbers that they stand for."""
    table = torch.tensor(_IQ4_VALUES, dtype=torch.float32)
    return table.index_select(0, codes.reshape(-1).int()).view(codes.shape)
