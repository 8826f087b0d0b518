"""A worker: a loaded model, its cache and its slots, ready to obey plans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from headrace.core.plan import StepPlan, StepResult
from headrace.executor.base import Capacity
from headrace.weights.peft import PeftAdapter

from .memory import MemoryPlan
from .step import StepRunner, do_nothing


class Worker:
    """What an executor runs. Its methods are called on one thread, one after the other."""

    def __init__(self, runner: StepRunner, capacity: Capacity, memory: MemoryPlan, effective: dict[str, Any]) -> None:
        self._runner = runner
        self.capacity = capacity
        self._memory = memory
        self._effective = effective

    def execute(self, plan: StepPlan, before_model: Callable[[], None] = do_nothing) -> StepResult:
        """See ``StepRunner.execute``."""
        with torch.inference_mode():
            return self._runner.execute(plan, before_model)

    def describe(self) -> tuple[MemoryPlan, dict[str, Any]]:
        """Where memory went, and the settings as they really are."""
        return self._memory, self._effective

    def load_adapter(self, number: int, adapter: PeftAdapter) -> None:
        """Adapter ``number`` is this one from the next step on. Raises ``CheckpointError`` if it does not fit."""
        self._runner.adapters.load(number, adapter)

    def unload_adapter(self, number: int) -> None:
        """Its memory is given back. No sequence may be bound to it."""
        self._runner.adapters.unload(number)

    def close(self) -> None:
        """No step comes any more. Raises ``EngineError`` if something that was to be kept could not be."""
        self._runner.saver.close()

    def slot_state(self) -> dict[str, list[int]]:
        """Lengths by slot: for error reports and tests."""
        return self._runner.slots.state()
