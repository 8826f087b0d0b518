"""Encoding of media: what a prompt's pictures become before its rows are computed."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from headrace.cache.groups import CacheGroup
from headrace.core.media import MediaItem
from headrace.core.plan import BLOCK_TOKENS, SlotInit
from headrace.models.base import Model
from headrace.ops.batch import Batch, GroupBatch
from headrace.ops.table import Ops

from .slots import SlotTable

_KEPT_BYTES = 1 << 28
"""Of what encoders gave: the next request with one of these media need not encode it again."""


class Media(Protocol):
    """Told of every sequence that is bound to a slot, once its block tables are there."""

    def bind(self, init: SlotInit, counters: Counter[str]) -> None: ...


class NoMedia:
    """For models that read text only."""

    def bind(self, init: SlotInit, counters: Counter[str]) -> None:
        pass


NO_MEDIA = NoMedia()


class CrossMedia:
    """Writes the keys and values of encoded media into blocks of their own.

    Args:
        groups: of the whole cache.
    """

    def __init__(self, model: Model, ops: Ops, groups: Sequence[CacheGroup], slots: SlotTable) -> None:
        self._model = model
        self._ops = ops
        self._groups = groups
        self._slots = slots
        self._states: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        """By digest, the one used longest ago first."""

    def bind(self, init: SlotInit, counters: Counter[str]) -> None:
        if init.encodes:
            states = torch.cat([self._encoded(item, counters) for item in init.media])
            self._model.write_media(states, self._plans(init.slot, states.shape[0]))

    def _encoded(self, item: MediaItem, counters: Counter[str]) -> torch.Tensor:
        """[n_states, hidden], one item a call: what becomes of it depends on nothing else."""
        states = self._states.pop(item.digest, None)
        if states is None:
            states = self._model.encode(item)
            counters["encoded_media"] += 1
        self._states[item.digest] = states
        while sum(kept.nbytes for kept in self._states.values()) > _KEPT_BYTES and len(self._states) > 1:
            self._states.popitem(last=False)
        return states

    def _plans(self, slot: int, n: int) -> dict[int, Any]:
        """By group, a plan that writes ``n`` keys to the slot's blocks and computes no row."""
        key = np.arange(n)
        nothing = torch.zeros(0, dtype=torch.int64)
        plans = {}
        for group in self._slots.media_groups:
            table = self._slots.block_tables[group][slot : slot + 1]
            where = table[0, key // BLOCK_TOKENS].astype(np.int64) * BLOCK_TOKENS + key % BLOCK_TOKENS
            part = GroupBatch(torch.from_numpy(table), torch.from_numpy(where), nothing.view(0, 2))
            parts = tuple(part for _ in self._groups)
            batch = Batch(nothing, nothing, torch.zeros(2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), parts)
            plans[group] = self._ops.plan(batch, group, self._groups[group].spec)
        return plans
