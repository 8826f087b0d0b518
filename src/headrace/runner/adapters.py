"""Adapters in the worker: they come and go between steps, and a step says which of its rows goes with which."""

from __future__ import annotations

from collections import Counter
from typing import Protocol

import torch

from headrace.core.errors import EngineError
from headrace.layers.adapters import Adapters, NoAdapters
from headrace.ops.batch import Batch
from headrace.weights.peft import PeftAdapter


class AdapterRows(Protocol):
    """What a worker knows of adapters."""

    def select(self, batch: Batch, counters: Counter[str]) -> None:
        """The rows of the next forward pass are those of ``batch``."""
        ...

    def load(self, number: int, adapter: PeftAdapter) -> None:
        """Raises ``CheckpointError``."""
        ...

    def unload(self, number: int) -> None: ...


class NoAdapterRows:
    """Of an engine without adapters."""

    def select(self, batch: Batch, counters: Counter[str]) -> None:
        pass

    def load(self, number: int, adapter: PeftAdapter) -> None:
        raise EngineError("an adapter was sent to a worker that was built without any")

    def unload(self, number: int) -> None:
        raise EngineError("an adapter was taken from a worker that was built without any")


class ModelAdapterRows:
    """``AdapterRows`` over the adapters of a model."""

    def __init__(self, adapters: Adapters) -> None:
        self._adapters = adapters

    def select(self, batch: Batch, counters: Counter[str]) -> None:
        rows, wanted = self._adapters.rows, batch.adapters
        if wanted is None or batch.n_rows > rows.shape[0]:
            raise EngineError(f"a step of {batch.n_rows} rows, of which {rows.shape[0]} may go with adapters")
        rows[: batch.n_rows].copy_(wanted)
        counters["adapter_rows"] += int((wanted >= 0).sum())

    def load(self, number: int, adapter: PeftAdapter) -> None:
        with torch.inference_mode():
            self._adapters.load(number, adapter)

    def unload(self, number: int) -> None:
        self._adapters.unload(number)


def adapter_rows(adapters: Adapters | NoAdapters) -> AdapterRows:
    return ModelAdapterRows(adapters) if isinstance(adapters, Adapters) else NoAdapterRows()
