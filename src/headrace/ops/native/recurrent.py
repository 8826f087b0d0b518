"""Recurrent layers on the native core. Layouts are described in ``native/kernels/recurrent_args.h``."""

from __future__ import annotations

from typing import Any

import torch

from headrace.core.errors import EngineError
from headrace.ops.recurrent import RecurrentShape, RecurrentWeights, StateRows

from .core import DTYPES, native
from .workspace import empty

_core = native()
_KINDS = {"gated_delta": 0, "mamba2": 1}


class NativeRecurrent:
    """``RecurrentOps`` on float32 and bfloat16 rows; sums and states are float32."""

    def plan(self, rows: StateRows, before: Any = None) -> Any:
        plan = _core.StatePlan() if before is None else before
        table = rows.block_table
        plan.fill(
            table.shape[0], rows.first_rows.data_ptr(), rows.counts.data_ptr(), rows.known.data_ptr(),
            rows.starts.data_ptr(), rows.first_drafts.data_ptr(), table.data_ptr(), table.shape[1],
        )  # fmt: skip
        return plan

    def gated_delta(
        self,
        x: torch.Tensor,
        states: torch.Tensor,
        drafts: torch.Tensor | None,
        metadata: Any,
        shape: RecurrentShape,
        weights: RecurrentWeights,
    ) -> torch.Tensor:
        y = empty((x.shape[0], shape.n_out), x.dtype)
        _run("gated_delta", x, y, states, drafts, metadata, shape, weights)
        return y

    def mamba2(
        self,
        x: torch.Tensor,
        states: torch.Tensor,
        drafts: torch.Tensor | None,
        metadata: Any,
        shape: RecurrentShape,
        weights: RecurrentWeights,
    ) -> torch.Tensor:
        y = empty((x.shape[0], shape.n_out), x.dtype)
        _run("mamba2", x, y, states, drafts, metadata, shape, weights)
        return y

    def advance(
        self,
        kind: str,
        drafts: torch.Tensor,
        states: torch.Tensor,
        metadata: Any,
        shape: RecurrentShape,
        weights: RecurrentWeights,
    ) -> None:
        _run(kind, drafts, None, states, None, metadata, shape, weights)


def _run(
    kind: str,
    x: torch.Tensor,
    y: torch.Tensor | None,
    states: torch.Tensor,
    drafts: torch.Tensor | None,
    metadata: Any,
    shape: RecurrentShape,
    weights: RecurrentWeights,
) -> None:
    dense = x.stride(1) == 1 and (drafts is None or drafts.stride() == x.stride())
    if not dense or states.stride(1) != 1 or states.shape[1] != shape.n_floats:
        raise EngineError(f"rows of {tuple(x.shape)}, states of {tuple(states.shape)} do not fit {shape}")
    low, high = weights.dt_limit
    _core.recurrent(
        metadata, _KINDS[kind], x.data_ptr(), _address(y), _address(drafts), states.data_ptr(), weights.conv.data_ptr(),
        _address(weights.conv_bias), weights.decay.data_ptr(), weights.dt_bias.data_ptr(), _address(weights.skip),
        weights.norm.data_ptr(), DTYPES[x.dtype], x.shape[0], x.stride(0), states.stride(0), shape.n_units, shape.heads,
        shape.rows, shape.cols, shape.taps, weights.eps, low, high,
    )  # fmt: skip


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


RECURRENT = NativeRecurrent()
