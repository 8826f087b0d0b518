"""A worker: a loaded model, its cache and its slots, ready to obey plans."""

from __future__ import annotations

from typing import Any

import torch

from headrace.core.plan import StepPlan, StepResult
from headrace.executor.base import Capacity

from .memory import MemoryPlan
from .step import StepRunner


class Worker:
    """What an executor runs. Its methods are called on one thread, one after the other."""

    def __init__(self, runner: StepRunner, capacity: Capacity, memory: MemoryPlan, effective: dict[str, Any]) -> None:
        self._runner = runner
        self.capacity = capacity
        self.memory = memory
        self.effective = effective
        """Settings as they really are, for ``LLM.effective_config``."""

    def execute(self, plan: StepPlan) -> StepResult:
        with torch.inference_mode():
            return self._runner.execute(plan)

    def slot_state(self) -> dict[str, list[int]]:
        """Lengths by slot: for error reports and tests."""
        return self._runner.slots.state()
