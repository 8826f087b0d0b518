"""Products with weights in blocks on the native core. ``native/kernels/block_linear_args.h`` has layout and formula."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headrace.core.errors import EngineError
from headrace.ops.block_linear import StackedBlocks, whole_segments
from headrace.ops.linear import LinearOps
from headrace.ops.memory import huge_zeros
from headrace.quant.formats import BlockFormat, BlockRows

from .core import DTYPES, native
from .workspace import empty

_core = native()

_CODES = ("whole", "e2m1", "e4m3")
"""In the core's order."""


@dataclass(frozen=True, slots=True)
class PackedBlocks:
    """A weight [n_out, n_in] in panels of blocks."""

    memory: torch.Tensor
    """[packed bytes] uint8, in pages of 2 MiB. Zero where nothing was filled in."""
    n_out: int
    n_in: int
    dtype: torch.dtype
    """Of what is multiplied with it and looked up in it."""


class NativeBlockLinear:
    """``BlockLinearOps`` for activations in float32 and bfloat16."""

    def __init__(self, form: BlockFormat) -> None:
        self._format = form
        self.core_format = _core.BlockFormat(
            form.bits, form.offset, form.group, form.has_minimum, form.has_wide_scales, _CODES.index(form.codes)
        )

    def nbytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        return int(_core.packed_block_bytes(*shape, self.core_format))

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> PackedBlocks:
        return PackedBlocks(huge_zeros(self.nbytes(shape, dtype)), *shape, dtype)

    def fill(self, data: PackedBlocks, first_row: int, rows: BlockRows) -> None:
        n, n_in = rows.numbers.shape
        if rows.format != self._format or n_in != data.n_in or not 0 <= first_row <= first_row + n <= data.n_out:
            raise EngineError(
                f"rows [{n}, {n_in}] of {rows.format} from row {first_row} on do not fit a weight of"
                f" [{data.n_out}, {data.n_in}] of {self._format}"
            )
        parts = rows.map(torch.Tensor.contiguous)
        minima = 0 if parts.minima is None else parts.minima.data_ptr()
        _core.pack_blocks(
            parts.numbers.data_ptr(), parts.scales.data_ptr(), minima, data.memory.data_ptr(), n, n_in, first_row,
            self.core_format,
        )  # fmt: skip

    def memory(self, data: PackedBlocks) -> list[torch.Tensor]:
        return [data.memory]

    def apply(
        self,
        x: torch.Tensor,
        weight: PackedBlocks,
        bias: torch.Tensor | None,
        *,
        segments: int = 1,
        dtype: torch.dtype | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if x.dtype != weight.dtype or x.shape[1] != weight.n_in:
            raise EngineError(
                f"x {tuple(x.shape)} {x.dtype} does not fit a weight of [{weight.n_out}, {weight.n_in}]"
                f" for {weight.dtype}"
            )
        if x.stride(1) != 1:
            x = x.contiguous()
        n_rows = x.shape[0]
        wanted = dtype or x.dtype
        y = empty((n_rows, weight.n_out), wanted) if out is None else out
        _core.block_linear(
            x.data_ptr(), weight.memory.data_ptr(), 0 if bias is None else bias.data_ptr(), y.data_ptr(),
            DTYPES[x.dtype], n_rows, weight.n_in, weight.n_out, x.stride(0), y.stride(0),
            whole_segments(segments, weight.n_in), wanted is torch.float32, self.core_format,
        )  # fmt: skip
        return y

    def embed(self, ids: torch.Tensor, weight: PackedBlocks) -> torch.Tensor:
        ids = ids.contiguous()
        y = empty((ids.shape[0], weight.n_in), weight.dtype)
        _core.block_embedding(
            ids.data_ptr(), weight.memory.data_ptr(), y.data_ptr(), DTYPES[weight.dtype], ids.shape[0],
            weight.n_in, weight.n_out, weight.n_in, self.core_format,
        )  # fmt: skip
        return y


def make(parts: tuple[tuple[int, BlockFormat], ...]) -> LinearOps:
    """Operators for a weight of (rows, format) parts."""
    made = [(rows, NativeBlockLinear(form)) for rows, form in parts]
    return made[0][1] if len(made) == 1 else StackedBlocks(made, empty)
