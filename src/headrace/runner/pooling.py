"""Pooling in the worker: rows of a prompt are collected chunk by chunk, and turned into numbers at its end.

Every sum runs row by row in order of position, whatever the chunks were, and what follows it is computed number by
number in double precision: so the result is a function of the prompt alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from headrace.core.plan import SlotInit
from headrace.core.pooling import Pooled, Pooling
from headrace.models.base import Model

_SLICE_ROWS = 256
"""Rows that a running sum takes at a time."""


class _Collector(Protocol):
    """Rows of one prompt, as they come."""

    def add(self, token_ids: np.ndarray, rows: torch.Tensor) -> None:
        """The next rows [T, hidden] and their tokens [T], in order of position."""
        ...

    def collected(self) -> torch.Tensor:
        """[R, hidden], when all have come."""
        ...


class _Last:
    def __init__(self) -> None:
        self._row = torch.empty(0)

    def add(self, token_ids: np.ndarray, rows: torch.Tensor) -> None:
        self._row = rows[-1:].clone()

    def collected(self) -> torch.Tensor:
        return self._row


class _First:
    def __init__(self) -> None:
        self._row: torch.Tensor | None = None

    def add(self, token_ids: np.ndarray, rows: torch.Tensor) -> None:
        if self._row is None:
            self._row = rows[:1].clone()

    def collected(self) -> torch.Tensor:
        assert self._row is not None
        return self._row


class _Mean:
    """A running sum in double precision. ``np.add.accumulate`` adds row to row, one after the other."""

    def __init__(self) -> None:
        self._sum: np.ndarray | None = None
        self._count = 0

    def add(self, token_ids: np.ndarray, rows: torch.Tensor) -> None:
        for first in range(0, len(rows), _SLICE_ROWS):
            part = rows[first : first + _SLICE_ROWS].double().numpy()
            if self._sum is not None:
                part = np.concatenate((self._sum[None], part))
            self._sum = np.add.accumulate(part, axis=0)[-1]
        self._count += len(rows)

    def collected(self) -> torch.Tensor:
        assert self._sum is not None
        return torch.from_numpy((self._sum / self._count).astype(np.float32))[None]


class _Some:
    """All rows, or those of one token."""

    def __init__(self, token_id: int | None) -> None:
        self._token_id = token_id
        self._rows: list[torch.Tensor] = []

    def add(self, token_ids: np.ndarray, rows: torch.Tensor) -> None:
        if self._token_id is None:
            self._rows.append(rows.clone())
        else:
            self._rows.append(rows[torch.from_numpy(token_ids == self._token_id)])

    def collected(self) -> torch.Tensor:
        return torch.cat(self._rows)


_COLLECTORS: dict[str, Callable[[Pooling], _Collector]] = {
    "last": lambda pooling: _Last(),
    "cls": lambda pooling: _First(),
    "mean": lambda pooling: _Mean(),
    "all": lambda pooling: _Some(None),
    "step": lambda pooling: _Some(pooling.step_tag_id),
}


class Poolers:
    """What the slots with a pooled sequence have collected so far."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._collectors: dict[int, _Collector] = {}

    def bind(self, init: SlotInit) -> None:
        """The slot has a new sequence; one that comes back after a preemption begins anew."""
        self._collectors.pop(init.slot, None)
        if init.pooling is not None:
            self._collectors[init.slot] = _COLLECTORS[init.pooling.pooling_type](init.pooling)

    def add(self, slot: int, token_ids: np.ndarray, rows: torch.Tensor) -> None:
        """The next rows of the slot's sequence: [T] int32 and [T, hidden]."""
        self._collectors[slot].add(token_ids, rows)

    def finish(self, init: SlotInit) -> Pooled:
        """The result, when all rows have been added. The slot is free of it then."""
        pooling = init.pooling
        assert pooling is not None
        values = self._model.pooled(self._collectors.pop(init.slot).collected())
        rows = [_finished(row, pooling) for row in values.tolist()]
        return Pooled(len(rows[0]), np.array(rows, np.float32).tobytes(), pooling.is_single)


def _finished(row: list[float], pooling: Pooling) -> list[float]:
    """One row of numbers: cut, divided by its length, or made probabilities."""
    row = row[: pooling.dimensions]
    if pooling.normalize:
        length = math.sqrt(math.fsum(value * value for value in row))
        return [value / length for value in row] if length else row
    if pooling.activation == "sigmoid":
        return [_sigmoid(value) for value in row]
    if pooling.activation == "softmax":
        most = max(row)
        masses = [math.exp(value - most) for value in row]
        total = math.fsum(masses)
        return [mass / total for mass in masses]
    return row


def _sigmoid(value: float) -> float:
    """Without overflow on either side."""
    if value >= 0.0:
        return 1.0 / (1.0 + math.exp(-value))
    mass = math.exp(value)
    return mass / (1.0 + mass)
