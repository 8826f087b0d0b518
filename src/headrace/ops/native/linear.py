"""Products with packed weights on the native core. The layout is described in ``native/kernels/linear_args.h``."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headrace.core.errors import EngineError
from headrace.ops.memory import huge_zeros

from .core import DTYPES, native
from .workspace import empty

_core = native()


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight [n_out, n_in] in panels."""

    memory: torch.Tensor
    """[packed bytes] uint8, in pages of 2 MiB. Zero where nothing was filled in."""
    n_out: int
    n_in: int
    dtype: torch.dtype


class NativeLinear:
    """``LinearOps`` over packed weights, float32 and bfloat16. A row's result depends on that row alone, to the bit."""

    def nbytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        return int(_core.packed_bytes(*shape, DTYPES[dtype]))

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> PackedWeight:
        return PackedWeight(huge_zeros(self.nbytes(shape, dtype)), *shape, dtype)

    def fill(self, data: PackedWeight, first_row: int, rows: torch.Tensor) -> None:
        n = rows.shape[0]
        if rows.shape[1:] != (data.n_in,) or not 0 <= first_row <= first_row + n <= data.n_out:
            raise EngineError(
                f"rows {tuple(rows.shape)} from row {first_row} on do not fit a weight of [{data.n_out}, {data.n_in}]"
            )
        rows = rows.to("cpu", data.dtype).contiguous()
        _core.pack_rows(
            rows.data_ptr(), data.memory.data_ptr(), DTYPES[data.dtype], n, data.n_in, data.n_in, first_row
        )  # fmt: skip

    def memory(self, data: PackedWeight) -> list[torch.Tensor]:
        return [data.memory]

    def apply(
        self,
        x: torch.Tensor,
        weight: PackedWeight,
        bias: torch.Tensor | None,
        *,
        segments: int = 1,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        if x.dtype != weight.dtype or x.shape[1] != weight.n_in:
            raise EngineError(
                f"x {tuple(x.shape)} {x.dtype} does not fit a weight of [{weight.n_out}, {weight.n_in}] {weight.dtype}"
            )
        if x.stride(1) != 1:
            x = x.contiguous()
        n_rows = x.shape[0]
        wanted = dtype or x.dtype
        y = empty((n_rows, weight.n_out), wanted)
        _core.linear(
            x.data_ptr(), weight.memory.data_ptr(), 0 if bias is None else bias.data_ptr(), y.data_ptr(),
            DTYPES[x.dtype], n_rows, weight.n_in, weight.n_out, x.stride(0), weight.n_out, segments,
            wanted is torch.float32,
        )  # fmt: skip
        return y

    def embed(self, ids: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
        ids = ids.contiguous()
        y = empty((ids.shape[0], weight.n_in), weight.dtype)
        _core.embedding(
            ids.data_ptr(), weight.memory.data_ptr(), y.data_ptr(), DTYPES[weight.dtype], ids.shape[0],
            weight.n_in, weight.n_out, weight.n_in,
        )  # fmt: skip
        return y


LINEAR = NativeLinear()
