"""Mixtures of experts on the native core: one call for all experts of a layer. Formulas: ``ops/reference/moe.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from headrace.core.errors import EngineError
from headrace.ops.block_linear import whole_segments
from headrace.ops.memory import huge_zeros
from headrace.ops.moe import ExpertsShape, Routing
from headrace.quant.formats import BlockFormat, BlockRows

from .block_linear import NativeBlockLinear, PackedBlocks
from .core import DTYPES, native
from .elementwise import KINDS
from .linear import LINEAR, NativeLinear, PackedWeight
from .rows import as_rows
from .workspace import empty

_core = native()


def softmax_top_k(logits: torch.Tensor, k: int, *, normalised: bool) -> Routing:
    """``reference.moe.softmax_top_k``."""
    logits, routing = _start(logits, k)
    _core.route(
        logits.data_ptr(), routing.ids.data_ptr(), routing.weights.data_ptr(), logits.shape[0], logits.stride(0),
        logits.shape[1], k, normalised,
    )  # fmt: skip
    return routing


def sigmoid_top_k(
    logits: torch.Tensor,
    correction: torch.Tensor | None,
    k: int,
    *,
    normalised: bool = False,
    n_groups: int = 1,
    top_groups: int = 1,
    factor: float = 1.0,
) -> Routing:
    """``reference.moe.sigmoid_top_k``."""
    logits, routing = _start(logits, k)
    if correction is not None and (correction.dtype is not torch.float32 or not correction.is_contiguous()):
        raise EngineError(f"a correction is dense and float32, got {correction.dtype}")
    _core.sigmoid_route(
        logits.data_ptr(), 0 if correction is None else correction.data_ptr(), routing.ids.data_ptr(),
        routing.weights.data_ptr(), logits.shape[0], logits.stride(0), logits.shape[1], k, normalised, n_groups,
        top_groups, factor,
    )  # fmt: skip
    return routing


def _start(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, Routing]:
    if logits.dtype is not torch.float32:
        raise EngineError(f"a router reads logits in float32, got {logits.dtype}")
    shape = (logits.shape[0], k)
    return as_rows(logits), Routing(empty(shape, torch.int32), empty(shape, torch.float32))


@dataclass(frozen=True, slots=True)
class PackedExperts:
    """The weights of all experts, each in panels of its own."""

    memory: torch.Tensor
    """[packed bytes] uint8, in pages of 2 MiB."""
    experts: tuple[PackedWeight | PackedBlocks, ...]
    """Over parts of ``memory``, one behind another."""
    core_format: Any
    """As the core knows the format of blocks; None for floats."""

    def as_argument(self, bias: torch.Tensor | None, segments: int) -> Any:
        addresses = self.memory.data_ptr(), 0 if bias is None else bias.data_ptr()
        if self.core_format is None:
            return _core.expert_weights(*addresses, segments)
        whole = whole_segments(segments, self.experts[0].n_in)
        return _core.expert_weights_in_blocks(*addresses, whole, self.core_format)


class PackedStorage:
    """``Storage`` of a parameter [n_experts * n_out, n_in]. ``one``: that of a single expert."""

    def __init__(self, n_experts: int, one: NativeLinear | NativeBlockLinear) -> None:
        self._n_experts, self._one = n_experts, one

    def nbytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        return self._n_experts * self._one.nbytes(self._single(shape), dtype)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> PackedExperts:
        memory = huge_zeros(self.nbytes(shape, dtype))
        parts = memory.view(self._n_experts, -1)
        if isinstance(self._one, NativeBlockLinear):
            blocks = tuple(PackedBlocks(part, *self._single(shape), dtype) for part in parts)
            return PackedExperts(memory, blocks, self._one.core_format)
        return PackedExperts(memory, tuple(PackedWeight(part, *self._single(shape), dtype) for part in parts), None)

    def fill(self, data: PackedExperts, first_row: int, rows: torch.Tensor | BlockRows) -> None:
        height, n_rows = data.experts[0].n_out, len(rows)
        done = 0
        while done < n_rows:
            expert, row = divmod(first_row + done, height)
            n = min(height - row, n_rows - done)
            self._one.fill(data.experts[expert], row, rows[done : done + n])
            done += n

    def memory(self, data: PackedExperts) -> list[torch.Tensor]:
        return [data.memory]

    def _single(self, shape: tuple[int, ...]) -> tuple[int, int]:
        n_out, n_in = shape
        if n_out % self._n_experts:
            raise EngineError(f"a parameter of {list(shape)} is not that of {self._n_experts} equal experts")
        return n_out // self._n_experts, n_in


class NativeExperts:
    """``ExpertOps`` over packed weights, float32 and bfloat16, or blocks."""

    def storage(self, n_experts: int, form: BlockFormat | None = None) -> PackedStorage:
        return PackedStorage(n_experts, LINEAR if form is None else NativeBlockLinear(form))

    def apply(
        self,
        x: torch.Tensor,
        routing: Routing,
        shape: ExpertsShape,
        gate_up: PackedExperts,
        down: PackedExperts,
        gate_up_bias: torch.Tensor | None = None,
        down_bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        first, second = gate_up.experts[0], down.experts[0]
        wanted = (shape.n_experts, shape.gate_up, shape.size, shape.n_experts, shape.size, shape.inner)
        found = (len(gate_up.experts), first.n_out, first.n_in, len(down.experts), second.n_out, second.n_in)
        if not x.dtype == first.dtype == second.dtype or x.shape[1] != shape.size or wanted != found:
            raise EngineError(f"x {tuple(x.shape)} {x.dtype} and weights {found} {first.dtype} do not fit {shape}")
        x = as_rows(x)
        y = empty((x.shape[0], shape.size), x.dtype)
        _core.experts(
            x.data_ptr(), routing.ids.data_ptr(), routing.weights.data_ptr(), gate_up.as_argument(gate_up_bias, 1),
            down.as_argument(down_bias, shape.segments), y.data_ptr(), DTYPES[x.dtype], x.shape[0], x.stride(0),
            shape.n_experts, routing.ids.shape[1], shape.size, shape.gate_up, shape.inner, KINDS[shape.activation],
            shape.limit, shape.scaled_input,
        )  # fmt: skip
        return y


EXPERTS = NativeExperts()
