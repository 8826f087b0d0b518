"""The contract of linear operators over weights in blocks, and several such weights as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from headrace.quant.formats import BLOCK, BlockFormat, BlockRows

from .linear import LinearOps


class BlockLinearOps(LinearOps, Protocol):
    """``LinearOps`` over weights of one format. ``native/kernels/block_linear_args.h`` defines products to the bit;
    every implementation gives these bits. ``fill`` takes ``BlockRows`` of the format."""

    def apply(
        self,
        x: torch.Tensor,
        weight: Any,
        bias: torch.Tensor | None,
        *,
        segments: int = 1,
        dtype: torch.dtype | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As ``LinearOps.apply``. ``segments`` of 4 are taken where each is whole blocks, else there is one.

        Args:
            out: where the result goes: [T, n_out], rows dense but any distance apart; None: new memory.
        """
        ...


def whole_segments(segments: int, n_in: int) -> int:
    """``segments``, where each is whole blocks; else 1."""
    return segments if n_in % (segments * BLOCK) == 0 else 1


class StackedBlocks:
    """``LinearOps`` over weights of several formats that lie on top of one another: q and k beside a finer v.

    Args:
        parts: (rows, operators) of each, in order.
        empty: makes the memory of a result from shape and dtype.
    """

    def __init__(
        self,
        parts: Sequence[tuple[int, BlockLinearOps]],
        empty: Callable[[tuple[int, ...], torch.dtype], torch.Tensor],
    ) -> None:
        ends = [sum(rows for rows, _ in parts[: i + 1]) for i in range(len(parts))]
        self._parts = [(end - rows, end, ops) for end, (rows, ops) in zip(ends, parts, strict=True)]
        self._empty = empty

    def nbytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        return sum(ops.nbytes((last - first, *shape[1:]), dtype) for first, last, ops in self._parts)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[Any]:
        return [ops.empty((last - first, *shape[1:]), dtype, device) for first, last, ops in self._parts]

    def fill(self, data: list[Any], first_row: int, rows: BlockRows) -> None:
        """Rows of one part; a tensor of the checkpoint is in one format."""
        index = next(i for i, (_, last, _) in enumerate(self._parts) if first_row < last)
        first, _, ops = self._parts[index]
        ops.fill(data[index], first_row - first, rows)

    def memory(self, data: list[Any]) -> list[torch.Tensor]:
        return [part for (_, _, ops), own in zip(self._parts, data, strict=True) for part in ops.memory(own)]

    def apply(
        self,
        x: torch.Tensor,
        weight: list[Any],
        bias: torch.Tensor | None,
        *,
        segments: int = 1,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        y = self._empty((x.shape[0], self._parts[-1][1]), dtype or x.dtype)
        for (first, last, ops), part in zip(self._parts, weight, strict=True):
            own = None if bias is None else bias[first:last]
            ops.apply(x, part, own, segments=segments, dtype=dtype, out=y[:, first:last])
        return y

    def embed(self, ids: torch.Tensor, weight: list[Any]) -> torch.Tensor:
        raise NotImplementedError("a table is one tensor of the checkpoint")


MakeBlockLinear = Callable[[tuple[tuple[int, BlockFormat], ...]], LinearOps]
"""Operators for a weight of (rows, format) parts."""
