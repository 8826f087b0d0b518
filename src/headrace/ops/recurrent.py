"""The contract of recurrent layers: gated delta rule and Mamba2, each with its convolution and its gated norm.

A layer's state is one row of float32 numbers in a block of its cache group. Block number b of a sequence holds the
state after the last computed token of its 32. The state after a draft row is kept nowhere, but the row's input is: when
it is known which drafts were right, these rows run once more, from their inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from .batch import Batch


@dataclass(frozen=True, slots=True)
class StateRows:
    """Which rows of a tensor belong to which sequence. All [S] int64 on the host."""

    first_rows: torch.Tensor
    counts: torch.Tensor
    known: torch.Tensor
    """Rows whose states are kept; those after them are drafts."""
    starts: torch.Tensor
    """Position of the first row."""
    first_drafts: torch.Tensor
    """Where the inputs of a sequence's drafts are kept."""
    block_table: torch.Tensor
    """[S, max_blocks] int32."""


def step_rows(batch: Batch, group: int) -> StateRows:
    """All rows of a step."""
    counts = batch.query_starts.diff()
    drafts = torch.zeros_like(counts) if batch.draft_counts is None else batch.draft_counts
    return StateRows(
        first_rows=batch.query_starts[:-1].contiguous(),
        counts=counts,
        known=counts - drafts,
        starts=batch.seq_lens - counts,
        first_drafts=drafts.cumsum(0) - drafts,
        block_table=batch.groups[group].block_table.contiguous(),
    )


def accepted_rows(batch: Batch, group: int, accepted: torch.Tensor) -> StateRows:
    """The draft rows that were right: ``accepted`` [S] int64, of each sequence's leading drafts. They lie among the
    kept inputs of the step's drafts."""
    rows = step_rows(batch, group)
    return StateRows(
        rows.first_drafts, accepted, accepted, rows.starts + rows.known, rows.first_drafts, rows.block_table
    )


@dataclass(frozen=True, slots=True)
class RecurrentShape:
    """Sizes of a recurrence. Heads that share a key (gated delta rule) or a group (Mamba2) are a unit."""

    n_units: int
    heads: int
    """Of a unit."""
    rows: int
    """Of a head's state [rows, cols]: the width of keys; ``ssm_state_size``."""
    cols: int
    """Width of a head's values."""
    taps: int
    """Of the convolution (its kernel size)."""

    @property
    def channels(self) -> int:
        """Channels of a unit that the convolution runs over."""
        return 2 * self.rows + self.heads * self.cols

    @property
    def unit_floats(self) -> int:
        """Numbers of a unit's state: taps - 1 inputs of every channel, the heads' states, rounded up to 16."""
        floats = (self.taps - 1) * self.channels + self.heads * self.rows * self.cols
        return -(-floats // 16) * 16

    @property
    def n_floats(self) -> int:
        """Numbers of a layer's state."""
        return self.n_units * self.unit_floats

    @property
    def n_heads(self) -> int:
        return self.n_units * self.heads

    @property
    def n_out(self) -> int:
        """Values of a row of the result."""
        return self.n_heads * self.cols


@dataclass(frozen=True, slots=True)
class RecurrentWeights:
    """What a recurrence computes with, all float32 and dense."""

    conv: torch.Tensor
    """[n_units, taps, channels], a unit's channels in the order q, k, v or x, B, C; oldest tap first."""
    conv_bias: torch.Tensor | None
    """[n_units, channels]"""
    decay: torch.Tensor
    """[n_heads]: -exp(A_log)."""
    dt_bias: torch.Tensor
    """[n_heads]"""
    norm: torch.Tensor
    """[cols] for the gated delta rule, [n_out] for Mamba2."""
    eps: float
    skip: torch.Tensor | None = None
    """[n_heads]: D of Mamba2."""
    dt_limit: tuple[float, float] = (0.0, float("inf"))
    """Of Mamba2: bounds of the time step."""


class RecurrentOps(Protocol):
    """Stateless: states come in with the call. A row's result depends on its input and the state before it alone."""

    def plan(self, rows: StateRows, before: Any = None) -> Any:
        """What the calls want to know of ``rows``. ``before``: an earlier plan that may be filled again."""
        ...

    def gated_delta(
        self,
        x: torch.Tensor,
        states: torch.Tensor,
        drafts: torch.Tensor | None,
        metadata: Any,
        shape: RecurrentShape,
        weights: RecurrentWeights,
    ) -> torch.Tensor:
        """The gated delta rule (arXiv 2412.06464), row after row.

        q, k and v go through the convolution and silu; q and k are divided by their norms (1e-6 under the root), q also
        by sqrt(rows). beta = sigmoid(b), g = exp(decay * softplus(a + dt_bias)), and for the state S of a head:
        S = g S; S = S + k (beta (v - Sᵀk))ᵀ; o = Sᵀq. The result is norm(o) * weight * silu(z), head by head.

        Args:
            x: [T, n_in] float32 or bfloat16; a row is, for each unit, [q | k | v of its heads | z of its heads], and
                then, for each unit, [b of its heads | a of its heads].
            states: [n_blocks, n_floats] float32, any block stride; read and written. Nothing is read of a sequence that
                starts at 0.
            drafts: [at least as many as there are draft rows, n_in]: takes the inputs of draft rows.
            metadata: from ``plan``.

        Returns:
            [T, n_out] in the dtype of x.
        """
        ...

    def mamba2(
        self,
        x: torch.Tensor,
        states: torch.Tensor,
        drafts: torch.Tensor | None,
        metadata: Any,
        shape: RecurrentShape,
        weights: RecurrentWeights,
    ) -> torch.Tensor:
        """Mamba2's recurrence (arXiv 2405.21060, section 6), row after row.

        x, B and C go through the convolution and silu. dt = softplus(dt + dt_bias), within ``dt_limit``. For the state
        h of a head: h = exp(dt * decay) h + B (dt x)ᵀ; y = hᵀC + D x. The result is norm(y * silu(gate)) * weight, one
        norm for each unit.

        Args: as ``gated_delta``; a row of x is [gate of all heads | x of all heads | B of all units | C of all units |
            dt of all heads].
        """
        ...

    def advance(
        self,
        kind: str,
        drafts: torch.Tensor,
        states: torch.Tensor,
        metadata: Any,
        shape: RecurrentShape,
        weights: RecurrentWeights,
    ) -> None:
        """States move on over kept inputs; ``metadata``: the plan of ``accepted_rows``. ``kind``: the method's name."""
        ...
