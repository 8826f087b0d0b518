"""The contract of low-rank additions (LoRA, arXiv 2106.09685): what adapters add to the outputs of a linear map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True, slots=True)
class LowRankPart:
    """Adds scale * B A x to outputs ``first`` and following."""

    a: torch.Tensor
    """[rank, n_in]."""
    b: torch.Tensor
    """[n, rank]."""
    first: int
    scale: float


class LowRankOps(Protocol):
    """One implementation keeps the adapters of a linear map, and adds what they give."""

    def table(self, n_adapters: int, n_in: int, n_out: int, dtype: torch.dtype) -> Any:
        """Room for adapters 0 .. n_adapters - 1 of a map from n_in to n_out values. Nothing is there yet."""
        ...

    def put(self, table: Any, number: int, parts: Sequence[LowRankPart]) -> None:
        """The adapter of that number is made of ``parts``, rounded to the dtype of the table. Between two steps."""
        ...

    def clear(self, table: Any, number: int) -> None:
        """It is gone, and its memory given back. Between two steps."""
        ...

    def add(self, x: torch.Tensor, y: torch.Tensor, adapters: torch.Tensor, table: Any) -> None:
        """y[t] += what adapter ``adapters[t]`` gives for x[t], in place, for each of its parts.

        A x is a sum in fp32, rounded to the dtype of x; B of that is a sum in fp32, times the scale and added to y in
        fp32, rounded once. Sums run as in ``LinearOps.apply``; a row's result depends on that row alone, and not on
        the number of its adapter or the rank of others.

        Args:
            x: [T, n_in] in the dtype of the table; rows may be any distance apart.
            y: [T, n_out] in that dtype, dense rows. Where there is no adapter, or none that changes this map, no bit
                of it changes.
            adapters: [at least T] int32, on the host; negative: none. An implementation that is recorded reads the
                same memory at a replay.
        """
        ...
