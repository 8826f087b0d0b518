"""Beams in the scheduler: the search is the plain one, and room is kept where a policy promises it."""

from __future__ import annotations

import random

import pytest
from sim_rig import STOP, Rig, RigConfig, full, sliding, state

from headrace.cache.manager import CacheOptions
from headrace.sched.options import SchedulerOptions


def options(rng: random.Random) -> dict[str, object]:
    width = rng.randint(1, 4)
    chosen: dict[str, object] = {
        "use_beam_search": True,
        "n": rng.randint(1, width),
        "early_stopping": rng.choice((None, 0, 1, 2)),
        "length_penalty": rng.choice((None, 1.0, 0.4, -0.5)),
        "beam_search_diversity_rate": rng.choice((None, None, 0.6, -0.3)),
        "stop_token_ids": rng.choice((None, (STOP,), (STOP, 2, 3))),
        "min_tokens": rng.choice((None, None, 2)),
        "logprobs": rng.choice((None, 0)),
    }
    if rng.random() < 0.3:
        return chosen | {"beam_width_array": (*(rng.randint(1, width) for _ in range(rng.randint(0, 3))), width)}
    return chosen | {"best_of": width}


@pytest.mark.parametrize("reuse", [True, False])
def test_random_searches_are_the_plain_ones(reuse: bool) -> None:
    rng = random.Random(5)
    specs = (full(), sliding(40), state())
    limits = SchedulerOptions(8, 64, 128, depth=2)
    rig = Rig(RigConfig(specs=specs, arena_tokens=2048, scheduler=limits, cache=CacheOptions(block_reuse=reuse)))
    for _ in range(60):
        rig.submit([rng.randrange(2, 8) for _ in range(rng.randint(1, 70))], rng.randint(2, 14), **options(rng))
    rig.drain()
    rig.check_end()
    lengths = {len(output.tokens) for output in rig.outputs.values()}
    assert len(lengths) > 8
    assert rig.scheduler.counters()["beam_forks"] > 100


def test_room_for_all_beams_is_kept() -> None:
    """Two requests of three beams, of which the cache holds one: with GUARANTEED_NO_EVICT the second waits."""
    limits = SchedulerOptions(8, 64, 128, capacity_policy="GUARANTEED_NO_EVICT", depth=2)
    rig = Rig(RigConfig(arena_tokens=3 * 96 + 32, scheduler=limits, cache=CacheOptions(block_reuse=False)))
    for _ in range(2):
        rig.submit([3, 4, 5] * 15, 50, use_beam_search=True, best_of=3, eos_ids=frozenset())
    rig.drain()
    rig.check_end()
    counters = rig.scheduler.counters()
    assert (counters["preemptions"], counters["standstills"]) == (0, 0)
    assert counters["beam_forks"] > 0
