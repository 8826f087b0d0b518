"""Reference recurrences: row after row in plain torch, fp32 inside. Formulas: ``ops/recurrent.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import silu, softplus

from headrace.core.plan import BLOCK_TOKENS
from headrace.ops.recurrent import RecurrentShape, RecurrentWeights, StateRows

_Step = Callable[[torch.Tensor, torch.Tensor, RecurrentShape, RecurrentWeights], torch.Tensor]
"""(a row of x in fp32, the layer's state [n_units, unit_floats], ...) -> a row of the result; the state is moved on."""


class ReferenceRecurrent:
    """``RecurrentOps`` on any device and dtype."""

    def plan(self, rows: StateRows, before: Any = None) -> StateRows:
        return rows

    def gated_delta(
        self,
        x: torch.Tensor,
        states: torch.Tensor,
        drafts: torch.Tensor | None,
        metadata: StateRows,
        shape: RecurrentShape,
        weights: RecurrentWeights,
    ) -> torch.Tensor:
        return _recur(_gated_delta_row, x, states, drafts, metadata, shape, weights)

    def mamba2(
        self,
        x: torch.Tensor,
        states: torch.Tensor,
        drafts: torch.Tensor | None,
        metadata: StateRows,
        shape: RecurrentShape,
        weights: RecurrentWeights,
    ) -> torch.Tensor:
        return _recur(_mamba2_row, x, states, drafts, metadata, shape, weights)

    def advance(
        self,
        kind: str,
        drafts: torch.Tensor,
        states: torch.Tensor,
        metadata: StateRows,
        shape: RecurrentShape,
        weights: RecurrentWeights,
    ) -> None:
        step = {"gated_delta": _gated_delta_row, "mamba2": _mamba2_row}[kind]
        _recur(step, drafts, states, None, metadata, shape, weights)


def _recur(
    step: _Step,
    x: torch.Tensor,
    states: torch.Tensor,
    drafts: torch.Tensor | None,
    rows: StateRows,
    shape: RecurrentShape,
    weights: RecurrentWeights,
) -> torch.Tensor:
    y = torch.empty(x.shape[0], shape.n_out, dtype=x.dtype, device=x.device)
    fields = (rows.first_rows, rows.counts, rows.known, rows.starts, rows.first_drafts)
    for seq, (first, count, known, start, draft) in enumerate(zip(*(f.tolist() for f in fields), strict=True)):
        table = rows.block_table[seq].tolist()
        state = states.new_zeros(shape.n_units, shape.unit_floats)
        if start:
            state = states[table[(start - 1) // BLOCK_TOKENS]].view_as(state).clone()
        for i in range(count):
            y[first + i] = step(x[first + i].float(), state, shape, weights)
            if i < known:
                states[table[(start + i) // BLOCK_TOKENS]] = state.flatten()
            else:
                assert drafts is not None
                drafts[draft + i - known] = x[first + i]
    return y


def _convolve(
    channels: torch.Tensor, state: torch.Tensor, shape: RecurrentShape, weights: RecurrentWeights
) -> torch.Tensor:
    """[n_units, channels] -> the same, after convolution and silu; the tail in ``state`` moves on."""
    n_tail = (shape.taps - 1) * shape.channels
    tail = state[:, :n_tail].view(shape.n_units, shape.taps - 1, shape.channels)
    window = torch.cat([tail, channels[:, None]], dim=1)
    tail.copy_(window[:, 1:])
    mixed = (window * weights.conv).sum(1)
    return silu(mixed if weights.conv_bias is None else mixed + weights.conv_bias)


def _heads(state: torch.Tensor, shape: RecurrentShape) -> torch.Tensor:
    """The heads' states, a view [n_units, heads, rows, cols]."""
    first = (shape.taps - 1) * shape.channels
    size = shape.heads * shape.rows * shape.cols
    return state[:, first : first + size].unflatten(1, (shape.heads, shape.rows, shape.cols))


def _gated_delta_row(
    x: torch.Tensor, state: torch.Tensor, shape: RecurrentShape, weights: RecurrentWeights
) -> torch.Tensor:
    units, heads, rows, cols = shape.n_units, shape.heads, shape.rows, shape.cols
    size = shape.channels + heads * cols
    grouped = x[: units * size].view(units, size)
    b, a = x[units * size :].view(units, 2, heads).unbind(1)
    mixed = _convolve(grouped[:, : shape.channels], state, shape, weights)
    q, k, v = mixed.split([rows, rows, heads * cols], dim=1)
    q = q * torch.rsqrt(q.square().sum(-1, keepdim=True) + 1e-6) * rows**-0.5
    k = k * torch.rsqrt(k.square().sum(-1, keepdim=True) + 1e-6)
    decay = torch.exp(weights.decay.view(units, heads) * softplus(a + weights.dt_bias.view(units, heads)))
    held = _heads(state, shape)
    held *= decay[:, :, None, None]
    error = v.view(units, heads, cols) - torch.einsum("uhrc,ur->uhc", held, k)
    held += torch.einsum("ur,uhc->uhrc", k, error * torch.sigmoid(b)[:, :, None])
    out = torch.einsum("uhrc,ur->uhc", held, q)
    normed = out * torch.rsqrt(out.square().mean(-1, keepdim=True) + weights.eps) * weights.norm
    return (normed * silu(grouped[:, shape.channels :].view(units, heads, cols))).flatten()


def _mamba2_row(x: torch.Tensor, state: torch.Tensor, shape: RecurrentShape, weights: RecurrentWeights) -> torch.Tensor:
    units, heads, rows, cols = shape.n_units, shape.heads, shape.rows, shape.cols
    gate, values, b, c, dt = x.split([shape.n_out, shape.n_out, units * rows, units * rows, shape.n_heads])
    channels = torch.cat([values.view(units, -1), b.view(units, rows), c.view(units, rows)], dim=1)
    mixed = _convolve(channels, state, shape, weights)
    values, b, c = mixed.split([heads * cols, rows, rows], dim=1)
    values = values.view(units, heads, cols)
    assert weights.skip is not None
    dt = softplus(dt + weights.dt_bias).clamp(*weights.dt_limit).view(units, heads, 1)
    held = _heads(state, shape)
    held *= torch.exp(dt * weights.decay.view(units, heads, 1))[..., None]
    held += torch.einsum("ur,uhc->uhrc", b, dt * values)
    out = torch.einsum("uhrc,ur->uhc", held, c) + weights.skip.view(units, heads, 1) * values
    gated = out.flatten(1) * silu(gate.view(units, -1))
    normed = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + weights.eps)
    return normed.flatten() * weights.norm


RECURRENT = ReferenceRecurrent()
