"""A step costs the same however many wait and however long the texts are."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from headrace.spec.proposer import NoProposer

PATH = Path(__file__).resolve().parents[2] / "bench" / "scheduler.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_scheduler", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def median(bench: ModuleType, n_queued: int, n_prompt: int) -> float:
    """The best of two medians, in milliseconds of this thread: neighbours and clock steps do not count."""
    return min(bench.measure(bench.scheduler(n_queued, NoProposer(), 2, n_prompt), 150, 2)[0] for _ in range(2))


def test_neither_the_queue_nor_the_context_makes_a_step_dearer(bench: ModuleType) -> None:
    short = median(bench, 0, 16)
    assert median(bench, 10_000, 16) < 1.5 * short
    assert median(bench, 0, 2048) < 1.5 * short
