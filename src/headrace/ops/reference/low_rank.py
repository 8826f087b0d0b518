"""Low-rank additions, adapter by adapter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from headrace.ops.low_rank import LowRankPart

Table = list[tuple[LowRankPart, ...]]


class ReferenceLowRank:
    """``LowRankOps`` over plain tensors."""

    def table(self, n_adapters: int, n_in: int, n_out: int, dtype: torch.dtype) -> tuple[Table, torch.dtype]:
        return [()] * n_adapters, dtype

    def put(self, table: tuple[Table, torch.dtype], number: int, parts: Sequence[LowRankPart]) -> None:
        adapters, dtype = table
        adapters[number] = tuple(LowRankPart(p.a.to(dtype), p.b.to(dtype), p.first, p.scale) for p in parts)

    def clear(self, table: tuple[Table, torch.dtype], number: int) -> None:
        table[0][number] = ()

    def add(self, x: torch.Tensor, y: torch.Tensor, adapters: torch.Tensor, table: tuple[Table, torch.dtype]) -> None:
        mine = adapters[: x.shape[0]]
        for number in mine[mine >= 0].unique().tolist():
            rows = (mine == number).nonzero().squeeze(1).to(x.device)
            for part in table[0][number]:
                last = part.first + part.b.shape[0]
                u = F.linear(x[rows], part.a)
                delta = F.linear(u.float(), part.b.float()) * part.scale
                y[rows, part.first : last] = (y[rows, part.first : last].float() + delta).to(y.dtype)


LOW_RANK = ReferenceLowRank()
