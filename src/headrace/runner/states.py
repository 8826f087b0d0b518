"""Drafts that were right, for layers whose state cannot be taken back: their rows run once more when that is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from headrace.models.base import Model
from headrace.ops.batch import Batch
from headrace.ops.recurrent import accepted_rows
from headrace.ops.table import Ops


class States(Protocol):
    """Asked at the end of every step."""

    def advance(self, batch: Batch, n_accepted: Sequence[int]) -> None:
        """``n_accepted``: of each sequence of the batch, how many of its leading drafts were right."""
        ...


class NoStates:
    """For models of which everything can be overwritten, and for engines without drafts."""

    def advance(self, batch: Batch, n_accepted: Sequence[int]) -> None:
        pass


class RecurrentStates:
    """``groups``: the cache groups that hold states."""

    def __init__(self, model: Model, ops: Ops, groups: Sequence[int]) -> None:
        self._model = model
        self._recurrent = ops.recurrent
        self._groups = tuple(groups)

    def advance(self, batch: Batch, n_accepted: Sequence[int]) -> None:
        if not any(n_accepted):
            return
        accepted = torch.tensor(n_accepted)
        plans = {group: self._recurrent.plan(accepted_rows(batch, group, accepted)) for group in self._groups}
        self._model.advance(plans)
