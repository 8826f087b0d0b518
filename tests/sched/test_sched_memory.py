"""Scenes: who gets memory, who gives way, and what is shared."""

from __future__ import annotations

import pytest
from scenes import FOREVER, cached, rig, rows, run_until_preempted, text, turn
from sim_rig import full, sliding

from headrace.core.outputs import MissReason
from headrace.core.plan import FinishReason

# Memory.


def test_the_lowest_is_preempted_and_what_was_in_flight_still_counts() -> None:
    """Two sequences, three blocks: the younger one gives way when the older needs its second block."""
    built = rig(arena=96, depth=2, reuse=False, max_seq_len=90, max_num_tokens=80)
    first = built.submit(text(30, 1), 50, **FOREVER)
    second = built.submit(text(40, 2), 40, **FOREVER)
    run_until_preempted(built)
    victim = built.scheduler._requests[second.request_id][0]
    assert victim.n_preempted == 1
    assert victim.n_flying == 1
    known = len(victim.tokens)
    built.apply()
    assert len(victim.tokens) == known + 1
    built.drain()
    built.check_end()
    assert built.outputs[first.request_id, 0].last.n_preempted == 0
    inits = [init for plan in built.plans for init in plan.inits if init.seq_id == victim.seq_id]
    assert len(inits[1].tokens) >= known + 1
    assert inits[1].n_prompt == 40


def test_nobody_comes_back_while_his_steps_are_in_flight() -> None:
    built = rig(arena=128, depth=2, reuse=False, max_seq_len=120, max_num_tokens=100)
    first = built.submit(text(60, 1), 50, **FOREVER)
    built.submit(text(40, 2), 40, **FOREVER)
    run_until_preempted(built)
    built.cancel(first)
    assert built.manager.pool.n_open == 2, "there is room for two blocks, which is what the other needs"
    assert not built.plan(), "but a step of it has not landed"
    built.apply()
    assert built.plan()
    built.drain()
    built.check_end()


def test_one_victim_is_enough_even_if_its_blocks_come_back_later() -> None:
    built = rig(arena=160, depth=2, reuse=False, max_seq_len=150, max_num_tokens=128)
    built.submit(text(60, 1), 60, **FOREVER)
    built.submit(text(5, 3), 60, **FOREVER)
    built.submit(text(40, 2), 60, **FOREVER)
    run_until_preempted(built)
    assert [seq.n_preempted for seq in built._sequences()] == [0, 0, 1]
    assert built.manager.n_limbo == 1
    built.drain()
    built.check_end()


def test_higher_priority_is_never_preempted_for_lower() -> None:
    built = rig(arena=160, reuse=False, max_seq_len=150)
    built.submit(text(30, 1), 60, priority=0.2, **FOREVER)
    built.submit(text(30, 2), 60, priority=0.9, **FOREVER)
    built.submit(text(30, 3), 60, priority=0.5, **FOREVER)
    built.drain()
    built.check_end()
    assert built.outputs[1, 0].last.n_preempted == 0
    assert built.outputs[0, 0].last.n_preempted > 0


def test_who_was_short_of_memory_is_served_before_lower_ones_take_it() -> None:
    """A long prompt of high priority, and three that decode: in the midst of its chunks each of them takes a block."""
    built = rig(arena=32 * 9, max_num_tokens=36, reuse=False, max_seq_len=280)
    for seed in range(3):
        built.submit(text(1, seed), 200, priority=0.4, **FOREVER)
    for _ in range(30):
        turn(built)
    built.submit(text(190, 7), 2, priority=0.9, **FOREVER)
    begin = len(built.plans)
    while not built.outputs[3, 0].tokens:
        turn(built)
    assert built.scheduler.counters()["preemptions"] > 0
    assert len(built.plans) - begin <= -(-190 // 32) + 2
    built.drain()
    built.check_end()


def test_a_refused_newcomer_is_tried_again_when_memory_comes_back() -> None:
    built = rig(arena=128, reuse=False, max_seq_len=120, chunked_prefill=False)
    built.submit(text(64, 1), 40, **FOREVER)
    built.submit(text(30, 2), 2, **FOREVER)
    built.submit(text(40, 3), 2, **FOREVER)
    assert rows(turn(built)) == {0: 64}
    assert rows(turn(built)) == {0: 1, 1: 30}
    assert rows(turn(built)) == {0: 1, 1: 1}, "the third needs two blocks, and one is free"
    assert built.outputs[1, 0].finish is FinishReason.LENGTH
    assert rows(turn(built)) == {0: 1}
    built.cancel(built.requests[0])
    assert rows(turn(built)) == {2: 40}
    built.drain()
    built.check_end()


def test_a_newcomer_is_tried_again_when_only_some_memory_comes_back() -> None:
    built = rig(arena=160, reuse=False, max_seq_len=120, chunked_prefill=False, max_num_tokens=70)
    built.submit(text(64, 1), 40, **FOREVER)
    built.submit(text(30, 2), 2, **FOREVER)
    built.submit(text(40, 3), 2, **FOREVER)
    for _ in range(6):
        turn(built)
    assert built.outputs[0, 0].finish is None
    assert built.outputs[2, 0].finish is FinishReason.LENGTH
    built.drain()
    built.check_end()


def test_a_cache_too_small_for_its_own_hit_is_emptied() -> None:
    """Two blocks: to copy the beginning of one and compute two takes three. Alone, the request starts afresh."""
    built = rig(arena=64, max_seq_len=60)
    built.submit(text(40), 5, **FOREVER)
    built.drain()
    built.submit(text(20) + text(25, 5), 5, **FOREVER)
    built.drain()
    built.check_end()
    assert built.scheduler.counters()["standstills"] == 1
    assert cached(built, 1) == 0


def test_scattered_blocks_are_no_dead_end() -> None:
    """A sector holds one block of the three sliding layers or three of the full one. Many short lives scatter the full
    layer's blocks over the sectors; a request that is promised the whole arena still gets it."""
    built = rig(*[sliding(40)] * 3, full(), arena=200, max_seq_len=180, max_num_tokens=16)
    for seed in range(12):
        built.submit(text(40 + seed, seed), 20 + 9 * (seed % 4), **FOREVER)
    longest = built.scheduler.manager.longest_alone(179, 1) + 1
    built.submit(text(90, 50), longest - 90, **FOREVER)
    built.drain()
    built.check_end()
    assert built.outputs[12, 0].finish is FinishReason.LENGTH


def test_the_first_in_line_is_not_passed_by_smaller_ones() -> None:
    built = rig(arena=128, reuse=False, max_seq_len=120)
    built.submit(text(60, 1), 20, **FOREVER)
    built.submit(text(100, 2), 4, **FOREVER)
    built.submit(text(3, 3), 4, **FOREVER)
    order = []
    while built.scheduler.n_unfinished:
        order += [init.seq_id for init in turn(built).inits]
    assert order == [0, 1, 2]
    built.check_end()


@pytest.mark.parametrize("policy", ["GUARANTEED_NO_EVICT", "STATIC_BATCH"])
def test_a_guarantee_is_kept(policy: str) -> None:
    built = rig(arena=320, capacity_policy=policy, reuse=False)
    for seed in range(8):
        built.submit(text(40, seed), 80, **FOREVER)
    built.drain()
    built.check_end()
    assert built.scheduler.counters()["preemptions"] == 0
    # Four blocks each, ten in all: two at a time.
    assert max(len(plan.works) for plan in built.plans) == 2


def test_a_static_batch_ends_before_the_next_begins() -> None:
    built = rig(capacity_policy="STATIC_BATCH", max_num_tokens=40)
    lengths = [3, 9, 5, 7, 4]
    for seed, length in enumerate(lengths):
        built.submit(text(30, seed), length, **FOREVER)
    built.drain()
    built.check_end()
    begins = [{init.seq_id for init in plan.inits} for plan in built.plans]
    first_of_last = next(i for i, begun in enumerate(begins) if 4 in begun)
    assert all(work.seq_id == 4 for plan in built.plans[first_of_last:] for work in plan.works)


def test_blocks_out_of_the_window_come_back_while_the_sequence_runs() -> None:
    built = rig(sliding(40), arena=128, max_num_tokens=16)
    built.submit(text(50), 190, **FOREVER)
    built.drain()
    built.check_end()
    assert built.scheduler.counters()["blocks_freed_out_of_window"] >= 6
    assert built.scheduler.counters()["preemptions"] == 0


# Prefixes.


def test_a_shared_prompt_is_computed_once() -> None:
    built = rig(max_num_tokens=128)
    built.submit(text(100), 4, n=4, temperature=1.0, **FOREVER)
    built.drain()
    built.check_end()
    assert [cached(built, 0, index) for index in range(4)] == [0, 96, 96, 96]
    assert built.scheduler.counters()["prefix_waits"] >= 3
    prefill = sum(work.n_rows for plan in built.plans for work in plan.works if work.start < 99)
    assert prefill == 100 + 3 * 4


def test_a_prompt_that_is_all_there_computes_its_last_token() -> None:
    built = rig()
    for _ in range(2):
        built.submit(text(64), 2, **FOREVER)
        built.drain()
    built.check_end()
    assert cached(built, 1) == 63
    assert built.outputs[1, 0].last.cache_miss is None
    assert built.scheduler.counters()["standstills"] == 0


def test_without_reuse_each_computes_its_own() -> None:
    built = rig(reuse=False)
    built.submit(text(100), 4, n=2, temperature=1.0, **FOREVER)
    built.drain()
    built.check_end()
    assert [cached(built, 0, index) for index in range(2)] == [0, 0]
    assert built.outputs[0, 0].last.cache_miss is MissReason.DISABLED


def test_who_waits_for_a_prefix_lets_others_pass_and_goes_on_alone_if_it_does_not_come() -> None:
    built = rig(max_num_tokens=32)
    first = built.submit(text(100), 4, **FOREVER)
    built.submit(text(100), 4, **FOREVER)
    built.submit(text(20, 5), 4, **FOREVER)
    turn(built)
    assert built.scheduler.stats()["numPrefixWaiters"] == 0, "no rows were left to look at the second"
    built.cancel(first)
    turn(built)
    built.drain()
    built.check_end()

    built = rig(max_num_tokens=40, partial=False)
    first = built.submit(text(100), 4, **FOREVER)
    built.submit(text(100), 4, **FOREVER)
    built.submit(text(20, 5), 4, **FOREVER)
    assert rows(turn(built)) == {0: 32, 2: 8}
    assert built.scheduler.stats()["numPrefixWaiters"] == 1
    built.cancel(first)
    plan = turn(built)
    assert plan.inits[0].seq_id == 1
    assert plan.inits[0].computed == 32
    built.drain()
    built.check_end()


def test_nobody_waits_twice_for_the_same_block() -> None:
    """The one that computes it is cancelled, and another, of higher priority, begins it anew: enough is enough."""
    built = rig(max_num_tokens=48, partial=False)
    first = built.submit(text(100), 4, **FOREVER)
    built.submit(text(100), 4, **FOREVER)
    turn(built)
    assert built.scheduler.stats()["numPrefixWaiters"] == 1
    built.cancel(first)
    built.manager.evict_all()
    built.submit(text(40), 4, priority=0.9, **FOREVER)
    assert rows(turn(built)) == {2: 40, 1: 8}
    built.drain()
    built.check_end()


def test_salts_share_nothing() -> None:
    built = rig()
    for salt in (None, "a", "b", "a"):
        built.submit(text(80), 2, cache_salt=salt)
        built.drain()
    built.check_end()
    assert [cached(built, i) for i in range(4)] == [0, 0, 0, 64]


def test_prompt_logprobs_compute_the_prompt_and_feed_the_index() -> None:
    built = rig()
    built.submit(text(80), 2, **FOREVER)
    built.drain()
    built.submit(text(80), 2, prompt_logprobs=0, **FOREVER)
    built.drain()
    assert cached(built, 1) == 0
    assert built.outputs[1, 0].last.cache_miss is MissReason.PROMPT_LOGPROBS
    assert len(built.outputs[1, 0].prompt_logprobs) == 79
    built.check_end()

    built = rig()
    built.submit(text(80), 2, prompt_logprobs=0)
    built.drain()
    built.submit(text(80), 2)
    built.drain()
    assert cached(built, 1) == 64
    built.check_end()


def test_output_tokens_are_found_again() -> None:
    built = rig()
    built.submit(text(40), 60, **FOREVER)
    built.drain()
    talk = text(40) + built.outputs[0, 0].tokens
    built.submit([*talk, 3], 4)
    built.drain()
    assert cached(built, 1) == 96, "three whole blocks, more than half of them output"
    built.check_end()
