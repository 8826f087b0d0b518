"""Many random lives from seeds: after every act the books balance, at the end every output is its plain run's."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest
from fuzz_driver import LAYERS, FuzzRig
from sim_rig import Rig, RigConfig

from headrace.cache.arena import TierSizes
from headrace.cache.manager import CacheOptions
from headrace.sched.options import SchedulerOptions

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
    # A standstill is rare by design; it has a scene of its own among the scheduler's tests. The disk has its own below,
    # and nobody here has media.
    rare = {
        "standstills",
        "blocks_freed_by_max_attention_window",
        "reused_media",
        "cached_tokens.disk",
        "disk_waits",
        "blocks_fetched",
        "disk_failures",
    }
    assert {name for name, count in seen.items() if count == 0} <= rare


@pytest.mark.parametrize(("specs", "fails"), [(0, False), (1, False), (8, False), (0, True)])
def test_texts_that_come_back_after_others_have_pushed_them_out(specs: int, fails: bool) -> None:
    """Sixteen texts in turn over a cache that holds little more than one, some of them at once."""
    rng = random.Random(specs)
    options = SchedulerOptions(4, 64, 160, depth=2)
    cache = CacheOptions(partial_reuse=specs % 2 == 0, tiers=TierSizes(3 * len(set(LAYERS[specs](40))), 200))
    rig = Rig(RigConfig(LAYERS[specs](40), 200, scheduler=options, cache=cache))
    texts = [[rng.randrange(2, 8) for _ in range(rng.choice((65, 100, 129)))] for _ in range(16)]
    for turn in range(100):
        if fails and turn == 50:
            rig.executor.disk_fails = lambda: rng.random() < 0.1
        rig.submit(rng.choice(texts), 4, temperature=rng.choice((None, 1.0)), seed=turn, eos_ids=frozenset())
        if rng.random() < 0.8:
            rig.drain()
        rig.scheduler.check_integrity()
    rig.drain()
    rig.check_end()
    seen = rig.scheduler.counters()
    print(seen)
    assert min(seen["cached_tokens.host"], seen["cached_tokens.disk"]) > 0, seen
    assert (seen["disk_failures"] > 0) == fails
