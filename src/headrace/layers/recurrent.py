"""Recurrent layers: what they have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from headrace.cache.specs import RecurrentState
from headrace.core.errors import EngineError
from headrace.ops.batch import Batch
from headrace.ops.recurrent import RecurrentShape, RecurrentWeights

from .base import BuildContext, CachedLayer, Parameter, stacked
from .linear import Linear


class RecurrentMixer(CachedLayer):
    """Projections in, a recurrence with its state, a projection out. A subclass says which recurrence, and what of.

    Args:
        name: path of the checkpoint's module.
        kind: the recurrence, a method of ``RecurrentOps``.
        inputs: names of the input projections and their widths.
    """

    def __init__(
        self,
        ctx: BuildContext,
        name: str,
        kind: str,
        shape: RecurrentShape,
        hidden_size: int,
        inputs: Mapping[str, int],
        *,
        bias: bool = False,
    ) -> None:
        self._shape, self._kind, self._ops = shape, kind, ctx.ops.recurrent
        self._run = getattr(ctx.ops.recurrent, kind)
        self.cache_spec = RecurrentState(shape.n_floats)
        names = tuple(f"{name}.{part}" for part in inputs)
        self.in_proj = Linear(ctx, names, hidden_size, tuple(inputs.values()), bias=bias)
        self.out_proj = Linear(ctx, (f"{name}.out_proj",), shape.n_out, (hidden_size,), bias=bias, parts=shape.n_units)
        small = self.small(ctx)
        channels = (shape.n_units * shape.channels,)
        self.conv = Parameter(
            small, (*channels, 1, shape.taps), stacked((f"{name}.conv1d.weight",), channels, 1, shape.taps)
        )
        heads = (shape.n_heads,)
        self.a_log = Parameter(small, heads, stacked((f"{name}.A_log",), heads))
        self.dt_bias = Parameter(small, heads, stacked((f"{name}.dt_bias",), heads))
        self._drafts = torch.empty(ctx.max_draft_rows, sum(inputs.values()), dtype=ctx.dtype, device=ctx.device)
        self._group = -1
        self._states = torch.empty(0)
        self._weights: Any = None

    def bind_cache(self, group: int, cache: torch.Tensor) -> None:
        if cache.dtype != torch.float32 or cache.shape[1:] != (self._shape.n_floats,):
            raise EngineError(f"a cache of {tuple(cache.shape)} {cache.dtype} does not fit {self.cache_spec}")
        self._group, self._states, self._weights = group, cache, self._read_weights()

    def __call__(self, x: torch.Tensor, angles: Any, batch: Batch) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]; ``angles`` are of no use here."""
        rows, plan = self.in_proj(x), batch.groups[self._group].metadata
        return self.out_proj(self._run(rows, self._states, self._drafts, plan, self._shape, self._weights))

    def advance(self, plans: Mapping[int, Any]) -> None:
        """The state moves on over draft rows that were right: ``plans`` by cache group."""
        plan = plans[self._group]
        self._ops.advance(self._kind, self._drafts, self._states, plan, self._shape, self._weights)

    def _read_weights(self) -> RecurrentWeights:
        raise NotImplementedError

    @staticmethod
    def small(ctx: BuildContext) -> BuildContext:
        """For the parameters that are no matrices: float32 whatever the activations are. There are few of them, and
        errors of a decay add up over a sequence."""
        return replace(ctx, dtype=torch.float32)

    def by_unit(self, channels: torch.Tensor, kinds: tuple[int, int, int]) -> torch.Tensor:
        """Channels in the checkpoint's order, all of one kind behind all of another -> [n_units, channels of a unit,
        ...]. ``kinds``: how many of each, all units together."""
        parts = channels.split(list(kinds))
        return torch.cat([part.unflatten(0, (self._shape.n_units, -1)) for part in parts], dim=1)
