"""Low-rank additions on the native core: ``native/ops/low_rank.h`` says how adapters lie there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from headrace.core.errors import EngineError
from headrace.ops.low_rank import LowRankPart

from .core import DTYPES, native
from .linear import LINEAR, PackedWeight
from .rows import as_rows

_core = native()


@dataclass(slots=True)
class AdapterTable:
    """The adapters of one linear map."""

    core: Any
    """What the core reads."""
    n_in: int
    n_out: int
    dtype: torch.dtype
    weights: dict[int, list[PackedWeight]] = field(default_factory=dict)
    """Keeps the memory, by adapter."""


class NativeLowRank:
    """``LowRankOps`` over packed weights, float32 and bfloat16, to the bit."""

    def table(self, n_adapters: int, n_in: int, n_out: int, dtype: torch.dtype) -> AdapterTable:
        return AdapterTable(_core.LowRankTable(n_adapters), n_in, n_out, dtype)

    def put(self, table: AdapterTable, number: int, parts: Sequence[LowRankPart]) -> None:
        for part in parts:
            n, rank = part.b.shape
            if tuple(part.a.shape) != (rank, table.n_in) or not 0 <= part.first <= part.first + n <= table.n_out:
                raise EngineError(
                    f"A {list(part.a.shape)} and B {list(part.b.shape)} from output {part.first} on do not fit a map"
                    f" from {table.n_in} to {table.n_out}"
                )
        # All of A in one product: x is read once.
        a = _packed(torch.cat([part.a for part in parts]), table.dtype)
        weights = [a]
        table.core.put(number, a.memory.data_ptr(), a.n_out)
        first = 0
        for part in parts:
            b = _packed(part.b, table.dtype)
            weights.append(b)
            table.core.add_part(number, b.memory.data_ptr(), first, b.n_in, part.first, b.n_out, part.scale)
            first += b.n_in
        table.weights[number] = weights

    def clear(self, table: AdapterTable, number: int) -> None:
        table.core.clear(number)
        table.weights.pop(number, None)

    def add(self, x: torch.Tensor, y: torch.Tensor, adapters: torch.Tensor, table: AdapterTable) -> None:
        if not x.dtype == y.dtype == table.dtype or (x.shape[1], y.shape[1]) != (table.n_in, table.n_out):
            raise EngineError(
                f"x {tuple(x.shape)} {x.dtype} and y {tuple(y.shape)} {y.dtype} do not fit a map from {table.n_in} to"
                f" {table.n_out} in {table.dtype}"
            )
        if y.stride(1) != 1 or adapters.dtype is not torch.int32 or adapters.shape[0] < x.shape[0]:
            raise EngineError(f"{x.shape[0]} rows want dense rows of y and as many adapters in int32")
        x = as_rows(x)
        _core.low_rank(
            x.data_ptr(), adapters.data_ptr(), table.core, y.data_ptr(), DTYPES[x.dtype], x.shape[0], table.n_in,
            x.stride(0), y.stride(0),
        )  # fmt: skip


def _packed(rows: torch.Tensor, dtype: torch.dtype) -> PackedWeight:
    n, k = rows.shape
    memory = torch.zeros(LINEAR.nbytes((n, k), dtype), dtype=torch.uint8)
    weight = PackedWeight(memory, n, k, dtype)
    LINEAR.fill(weight, 0, rows)
    return weight


LOW_RANK = NativeLowRank()
