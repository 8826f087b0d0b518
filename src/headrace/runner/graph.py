"""Decode steps recorded once and replayed with one call: the counterpart of CUDA graphs on the CPU.

A step whose rows all give logits is run once under the recorder; from then on the same native calls run over the same
buffers, for any number of rows that fits into them. What changes from step to step is copied into fixed places first.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch

from headrace.cache.groups import CacheGroup
from headrace.models.base import Model
from headrace.models.taps import NO_TAPS, Taps
from headrace.ops.batch import Batch, GroupBatch
from headrace.ops.table import Ops

log = logging.getLogger("headrace")


class Graphs(Protocol):
    """Something that may compute a step's logits faster."""

    def logits(self, batch: Batch, counters: Counter[str]) -> torch.Tensor | None:
        """[T, vocab_size] fp32 of all rows, good until the next call; None: the step has to run as it is."""
        ...


class NoGraphs:
    """Every step runs as it is."""

    def logits(self, batch: Batch, counters: Counter[str]) -> torch.Tensor | None:
        return None


class StepGraphs:
    """Recorded steps by size, each recorded when its size first occurs.

    Args:
        sizes: rows that recordings have room for, ascending.
        taps: of the model; a replay shows the states of its own rows there.
        exact: a step is replayed only if it has just as many rows as a size says (``enable_padding=False``). Rows in
            between need no padding: the number of rows is an argument of a replay.
    """

    def __init__(
        self,
        model: Model,
        ops: Ops,
        groups: Sequence[CacheGroup],
        sizes: Sequence[int],
        *,
        exact: bool,
        taps: Taps = NO_TAPS,
    ) -> None:
        self._model = model
        self._taps = taps
        self._ops = ops
        self._n_groups = len(groups)
        own = set(model.cache_specs())
        self._planned = [(index, group.spec) for index, group in enumerate(groups) if group.spec in own]
        """The groups that the model has layers in."""
        self._sizes = tuple(sizes)
        self._exact = exact
        self._recorded: dict[tuple[int, bool], _Recording] = {}
        """By size, and whether rows see media: layers that look at those are left out elsewhere."""

    def logits(self, batch: Batch, counters: Counter[str]) -> torch.Tensor | None:
        size = next((size for size in self._sizes if size >= batch.n_rows), None)
        if size is None or (self._exact and size != batch.n_rows):
            return None
        recording = self._recorded.get((size, batch.sees_media))
        if recording is None:
            recording = self._recorded[size, batch.sees_media] = _Recording(size, self._n_groups)
            counters["graph_captures"] += 1
            logits = recording.capture(self._plan(recording.inputs(batch)), self._model, self._taps)
            if recording.missed:
                log.warning("steps run without recordings: the model computes %s with torch itself", recording.missed)
                self._sizes, self._recorded = (), {}
            return logits
        counters["graph_replays"] += 1
        self._plan(recording.inputs(batch))
        return recording.replay(batch.n_rows, self._taps)

    def _plan(self, batch: Batch) -> Batch:
        for index, spec in self._planned:
            batch.groups[index].metadata = self._ops.plan(batch, index, spec)
        return batch


class _Recording:
    """One recorded step, its inputs and its memory."""

    def __init__(self, size: int, n_groups: int) -> None:
        from headrace.ops.native.record import Recorder

        self._recorder = Recorder(size)
        self._ids = np.zeros(size, np.int64)
        self._positions = np.zeros(size, np.int64)
        self._metadata: list[Any] = [None] * n_groups
        self._groups: tuple[GroupBatch, ...] = ()
        self._logits = torch.empty(0)
        self._states = torch.empty(0)
        self._tapped: list[torch.Tensor] = []

    def inputs(self, batch: Batch) -> Batch:
        """The same batch, its rows' inputs in fixed places, with the plans of the step before to be refilled."""
        n = batch.n_rows
        ids, positions = self._ids[:n], self._positions[:n]
        ids[:], positions[:] = batch.input_ids.numpy(), batch.positions.numpy()
        before = self._groups or (None,) * len(batch.groups)
        self._groups = tuple(
            GroupBatch(part.block_table, part.write_index, part.key_ranges, None if last is None else last.metadata)
            for part, last in zip(batch.groups, before, strict=True)
        )
        states = batch.states
        if states is not None:
            if not self._states.numel():
                self._states = states.new_zeros(self._recorder.size, states.shape[1])
            states = self._states[:n].copy_(states)
        return replace(
            batch,
            input_ids=torch.from_numpy(ids),
            positions=torch.from_numpy(positions),
            groups=self._groups,
            states=states,
        )

    def capture(self, batch: Batch, model: Model, taps: Taps) -> torch.Tensor:
        with self._recorder.recording(batch.n_rows):
            self._logits = model.logits(model.forward(batch))
        self._logits = self._with_room(self._logits)
        # As long as somebody holds them, no other output is laid into their memory.
        self._tapped = [self._with_room(state) for state in taps.states]
        return self._logits[: batch.n_rows]

    def _with_room(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows lie one behind another, with room for all of the size."""
        return rows.as_strided((self._recorder.size, rows.shape[1]), (rows.shape[1], 1))

    @property
    def missed(self) -> str | None:
        """What a replay would leave out."""
        return self._recorder.missed

    def replay(self, n_rows: int, taps: Taps) -> torch.Tensor:
        self._recorder.replay(n_rows)
        taps.show([state[:n_rows] for state in self._tapped])
        return self._logits[:n_rows]
