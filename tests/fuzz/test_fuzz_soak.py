"""Many random lives from seeds: after every act the books balance, at the end every output is its plain run's."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from fuzz_driver import FuzzRig

LIVES, ACTS = 10, 150


def live(seed: int, acts: int = ACTS) -> FuzzRig:
    rig = FuzzRig(seed)
    for _ in range(acts):
        rig.act()
        rig.scheduler.check_integrity()
    rig.finish_life()
    return rig


@pytest.mark.parametrize("block", range(20))
def test_random_lives(block: int) -> None:
    for seed in range(block * LIVES, (block + 1) * LIVES):
        live(seed)


def test_the_lives_are_eventful_and_quick() -> None:
    """Everything that can go wrong has had its chance: a fuzz that preempts nobody proves nothing about preemption."""
    seen: Counter[str] = Counter()
    steps, begin = 0, time.perf_counter()
    for seed in range(1000, 1040):
        rig = live(seed)
        seen.update(rig.scheduler.counters())
        steps += rig.n_steps
    print(f"{steps / (time.perf_counter() - begin):,.0f} steps a second, integrity checked after each: {dict(seen)}")
    # A standstill is rare by design; it has a scene of its own among the scheduler's tests.
    assert [name for name, count in seen.items() if count == 0] in ([], ["standstills"])
