"""Scenes: who gets rows, memory and slots, and what becomes of those that end early."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from sim_rig import STOP, Rig, RigConfig, full, sliding

from headrace.cache.manager import CacheOptions
from headrace.core.errors import ConfigError, IntegrityError, PromptTooLongError, QueueFullError, RequestError
from headrace.core.outputs import MissReason
from headrace.core.plan import FinishReason, Rows, SeqResult, StepPlan, StepResult
from headrace.sched.commands import Control, Submit
from headrace.sched.options import SchedulerOptions

FOREVER = {"eos_ids": frozenset()}


def rig(
    *specs: object,
    arena: int = 2048,
    proposer: str = "none",
    reuse: bool = True,
    partial: bool = True,
    **options: object,
) -> Rig:
    """Defaults: four slots, 64 rows, one step at a time."""
    settings = {"max_batch_size": 4, "max_num_tokens": 64, "max_seq_len": 256, "depth": 1} | options
    built = Rig(
        RigConfig(specs or (full(),), arena, 8, SchedulerOptions(**settings), CacheOptions(reuse, partial), proposer)
    )
    built.keep_plans = True
    return built


def text(n: int, seed: int = 0) -> list[int]:
    return [2 + (i * i + seed * (i + 1)) % 6 for i in range(n)]


def turn(built: Rig) -> StepPlan | None:
    """Plans and applies one step."""
    if not built.plan():
        return None
    built.apply()
    return built.plans[-1]


def rows(plan: StepPlan) -> dict[int, int]:
    return {work.seq_id: work.n_rows for work in plan.works}


def cached(built: Rig, request_id: int, index: int = 0) -> int:
    return built.outputs[request_id, index].last.cached_tokens


# Rows.


def test_a_prompt_is_computed_in_chunks_and_only_the_last_gives_a_token() -> None:
    built = rig()
    built.submit(text(150), 2)
    plans = [turn(built) for _ in range(4)]
    assert [(p.works[0].start, p.works[0].n_rows, p.works[0].outputs) for p in plans] == [
        (0, 64, Rows.NONE), (64, 64, Rows.NONE), (128, 22, Rows.LAST), (150, 1, Rows.LAST),
    ]  # fmt: skip
    assert built.scheduler.counters()["chunks"] == 2
    built.drain()
    built.check_end()


def test_decodes_go_first_and_chunks_ride_along_to_a_block_border() -> None:
    built = rig(reuse=False)
    for seed in range(3):
        built.submit(text(4, seed), 50, **FOREVER)
    turn(built)
    built.submit(text(200, 9), 2)
    assert rows(turn(built)) == {0: 1, 1: 1, 2: 1, 3: 32}
    assert rows(turn(built)) == {0: 1, 1: 1, 2: 1, 3: 32}
    assert built.scheduler.counters()["mixed_steps"] == 2
    built.drain()
    built.check_end()


def test_fewer_rows_than_sequences_means_turns() -> None:
    """Two wait for their tokens while two more are let in; then all four want the two rows of each step."""
    built = rig(max_num_tokens=2, depth=2, proposer="seer", reuse=False)
    for seed in range(4):
        built.submit(text(1, seed), 150, **FOREVER)
    built.plan()
    built.plan()
    built.apply()
    built.apply()
    shares: Counter[int] = Counter()
    for _ in range(40):
        shares.update(work.seq_id for work in turn(built).works)
    assert set(shares.values()) == {20}
    built.drain()
    built.check_end()


def test_no_more_are_admitted_than_there_are_rows_for() -> None:
    built = rig(max_num_tokens=3, reuse=False)
    for seed in range(4):
        built.submit(text(1, seed), 5, **FOREVER)
    assert [len(turn(built).works) for _ in range(6)] == [3, 3, 3, 3, 3, 1]
    built.drain()
    built.check_end()


def test_a_prompt_gets_its_turn_although_decodes_fill_every_step() -> None:
    built = rig(max_num_tokens=2, max_batch_size=3, reuse=False)
    built.submit(text(1, 1), 100, **FOREVER)
    built.submit(text(30, 3), 4, **FOREVER)
    turn(built)
    turn(built)
    built.submit(text(1, 2), 100, **FOREVER)
    for _ in range(120):
        turn(built)
    assert built.outputs[1, 0].finish is FinishReason.LENGTH
    built.drain()
    built.check_end()


@pytest.mark.parametrize(("policy", "shares"), [("FIRST_COME_FIRST_SERVED", [64]), ("EQUAL_PROGRESS", [32, 32])])
def test_chunking_policies(policy: str, shares: list[int]) -> None:
    built = rig(chunking_policy=policy, reuse=False)
    for seed in range(2):
        built.submit(text(200, seed), 2)
    assert list(rows(turn(built)).values()) == shares
    assert list(rows(turn(built)).values()) == shares
    built.drain()
    built.check_end()


def test_without_chunks_a_prompt_waits_for_the_rows_it_needs() -> None:
    built = rig(chunked_prefill=False, reuse=False)
    built.submit(text(40, 1), 3, **FOREVER)
    built.submit(text(60, 2), 3, **FOREVER)
    assert rows(turn(built)) == {0: 40}
    assert rows(turn(built)) == {0: 1, 1: 60}
    built.drain()
    built.check_end()
    assert built.scheduler.counters()["chunks"] == 0


def test_drafts_shrink_to_the_rows_that_are_left() -> None:
    built = rig(max_num_tokens=4, max_batch_size=3, proposer="seer", reuse=False)
    for seed in range(3):
        built.submit(text(1, seed), 40, **FOREVER)
    built.drain()
    built.check_end()
    widths = [plan.n_rows for plan in built.plans]
    assert max(widths) == 4
    assert built.scheduler.counters()["drafts_accepted"] > 0


def test_drafts_leave_rows_for_prompts() -> None:
    built = rig(max_num_tokens=16, proposer="seer", reuse=False)
    for seed in range(3):
        built.submit(text(1, seed), 200, **FOREVER)
    for _ in range(3):
        turn(built)
    built.submit(text(100, 9), 1)
    begin = len(built.plans)
    while built.outputs[3, 0].finish is None:
        turn(built)
    # 13 rows are not the decodes' own; drafts take half of them at most, so seven are for the prompt.
    assert len(built.plans) - begin <= 100 // 7 + 2
    built.drain()
    built.check_end()


# Overlap.


def test_the_next_step_is_planned_before_the_token_is_known() -> None:
    built = rig(depth=2)
    built.submit(text(10), 5, **FOREVER)
    built.plan()
    built.plan()
    assert [(plan.works[0].start, plan.works[0].n_tokens) for plan in built.plans] == [(0, 10), (10, 1)]
    built.drain()
    built.check_end()
    assert built.scheduler.counters()["overlapped_steps"] == 4


def test_a_stopped_slot_gives_an_empty_result_to_the_step_behind() -> None:
    built = rig(depth=2)
    request = built.submit(text(10), 60, stop_token_ids=(STOP, 2, 3, 4), **FOREVER)
    built.drain()
    built.check_end()
    assert built.outputs[request.request_id, 0].finish is FinishReason.STOP


def test_only_who_needs_tokens_waits_for_them() -> None:
    built = rig(depth=2, proposer="seer", max_num_tokens=32)
    built.submit(text(70), 5, **FOREVER)
    assert [built.plan(), built.plan()] == [True, True], "chunks need no tokens"
    built.apply()
    assert built.plan()
    assert not built.plan(), "the last chunk samples: the next plan waits for its token"
    built.drain()
    built.check_end()


def test_with_drafts_in_flight_plans_speak_of_bounds() -> None:
    built = rig(depth=3, proposer="blind", reuse=False)
    built.submit(text(8), 60, **FOREVER)
    built.drain()
    built.check_end()
    counters = built.scheduler.counters()
    assert counters["drafts_accepted"] > 0
    assert counters["drafts_proposed"] > counters["drafts_accepted"]
    assert counters["overlapped_steps"] > 10


# Memory.


def run_until_preempted(built: Rig) -> None:
    """Stops right after the plan that preempts somebody."""
    while True:
        planned = len(built.in_flight) < 2 and built.plan()
        if built.scheduler.counters()["preemptions"]:
            return
        if not planned:
            built.apply()


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


# Ends.


def test_cancel_in_every_state() -> None:
    def waiting(built: Rig) -> None:
        built.submit(text(10, 1), 50, **FOREVER)
        turn(built)
        built.submit(text(10, 2), 50, **FOREVER)

    def running(built: Rig) -> None:
        built.submit(text(10, 2), 50, **FOREVER)
        turn(built)

    def in_flight(built: Rig) -> None:
        built.submit(text(10, 2), 50, **FOREVER)
        built.plan()
        built.plan()

    def between_chunks(built: Rig) -> None:
        built.submit(text(90, 2), 50, **FOREVER)
        turn(built)

    for state in (waiting, running, in_flight, between_chunks):
        built = rig(max_batch_size=1, depth=2)
        state(built)
        request = list(built.requests.values())[-1]
        built.cancel(request)
        output = built.outputs[request.request_id, 0]
        assert output.finish is FinishReason.CANCELLED, state.__name__
        built.drain()
        built.check_end()


def test_cancel_while_waiting_for_a_prefix_and_while_preempted() -> None:
    built = rig(max_num_tokens=40, partial=False)
    built.submit(text(100), 4)
    waiter = built.submit(text(100), 4)
    turn(built)
    assert built.scheduler.stats()["numPrefixWaiters"] == 1
    built.cancel(waiter)
    assert built.scheduler.stats()["numPrefixWaiters"] == 0
    built.drain()
    built.check_end()

    built = rig(arena=96, depth=2, reuse=False, max_seq_len=90)
    built.submit(text(30, 1), 50, **FOREVER)
    second = built.submit(text(30, 2), 50, **FOREVER)
    run_until_preempted(built)
    built.cancel(second)
    built.drain()
    built.check_end()


def test_deadlines_end_requests_wherever_they_are() -> None:
    built = rig(max_batch_size=1)
    now = built.clock.now()
    built.submit(text(10, 1), 100, deadline=now + 0.05, n=1, **FOREVER)
    built.submit(text(10, 2), 100, deadline=now + 0.01, **FOREVER)
    built.submit(text(10, 3), 3, deadline=now + 100.0, **FOREVER)
    assert built.scheduler.next_deadline == now + 0.01
    built.drain()
    built.check_end()
    assert [built.outputs[i, 0].finish for i in range(3)] == [
        FinishReason.TIMEOUT, FinishReason.TIMEOUT, FinishReason.LENGTH,
    ]  # fmt: skip
    assert 0 < len(built.outputs[0, 0].tokens) < 100
    assert built.outputs[1, 0].tokens == []
    assert built.scheduler.next_deadline is None
    assert built.scheduler.counters()["timeouts"] == 2


def test_a_stop_string_ends_one_output_and_drops_what_is_in_flight() -> None:
    built = rig(depth=2)
    request = built.submit(text(10), 30, n=2, temperature=1.0, **FOREVER)
    turn(built)
    built.plan()
    built.plan()
    had = len(built.outputs[0, 0].tokens)
    built.finish(request, 0)
    assert built.outputs[0, 0].last.stop_reason == "word"
    built.drain()
    built.check_end()
    assert len(built.outputs[0, 0].tokens) == had
    assert built.outputs[0, 1].finish is FinishReason.LENGTH


def test_an_error_in_the_worker_ends_that_request_only() -> None:
    built = rig()
    built.submit(text(10, 1), 5, **FOREVER)
    built.submit(text(10, 2), 5, **FOREVER)
    plan = built.scheduler.plan()
    result = built.executor.submit(plan).result()
    spoiled = replace(result.results[0], tokens=(), error="token 3 has logits that are not numbers")
    built._take(built.scheduler.apply(replace(result, results=(spoiled, result.results[1]))))
    assert built.outputs[0, 0].finish is FinishReason.ERROR
    assert "not numbers" in str(built.outputs[0, 0].last.error)
    built.drain()
    built.check_end()


def test_a_result_that_cannot_be_is_loud() -> None:
    built = rig()
    built.submit(text(10, 1), 5, **FOREVER)
    plan = built.scheduler.plan()
    with pytest.raises(IntegrityError, match="expected"):
        built.scheduler.apply(StepResult(plan.step + 1, ()))
    built = rig()
    built.submit(text(10, 1), 5, **FOREVER)
    plan = built.scheduler.plan()
    wrong = StepResult(plan.step, (SeqResult(plan.works[0].slot, plan.works[0].seq_id, computed=9, tokens=(3,)),))
    with pytest.raises(IntegrityError, match="disagree"):
        built.scheduler.apply(wrong)


# Refusals.


@pytest.mark.parametrize(
    ("options", "prompt", "max_tokens", "error", "message"),
    [
        ({}, 0, 1, RequestError, "prompt is empty"),
        ({}, 250, 10, PromptTooLongError, "exceed max_seq_len=256"),
        ({"max_seq_len": 64}, 64, None, PromptTooLongError, "exceed max_seq_len=64"),
        ({"arena": 128}, 100, 100, PromptTooLongError, "the KV cache, which holds 128 tokens"),
        ({"arena": 128}, 129, None, PromptTooLongError, "the KV cache, which holds 128 tokens"),
        ({"chunked_prefill": False}, 65, 1, PromptTooLongError, "turn enable_chunked_prefill on"),
    ],
)
def test_what_can_never_fit_is_refused(
    options: dict, prompt: int, max_tokens: int | None, error: type, message: str
) -> None:
    built = rig(**options)
    built.submit(text(prompt), max_tokens)
    refusal = built.outputs[0, 0].last
    assert refusal.finish_reason is FinishReason.ERROR
    assert type(refusal.error) is error
    assert message in str(refusal.error)
    assert built.scheduler.n_unfinished == 0
    built.check_end()


def test_max_tokens_none_goes_to_the_limit_of_length_or_cache() -> None:
    for arena, length in ((2048, 256), (128, 129)):
        built = rig(arena=arena)
        built.submit(text(20), None, **FOREVER)
        built.drain()
        built.check_end()
        assert len(built.outputs[0, 0].tokens) == length - 20


def test_a_full_queue_refuses() -> None:
    built = rig(max_batch_size=1, max_queue_size=2)
    for seed in range(5):
        built.submit(text(10, seed), 3)
    errors = [type(built.outputs[i, 0].last.error) if built.outputs[i, 0].last else None for i in range(5)]
    assert errors == [None, None, None, QueueFullError, QueueFullError]
    built.drain()
    built.check_end()


def test_an_id_in_use_is_refused() -> None:
    built = rig()
    request = built.submit(text(10), 3)
    (refusal,) = built.scheduler.ingest([Submit(request)])
    assert isinstance(refusal.error, RequestError)
    assert "in use" in str(refusal.error)


def test_priorities_go_first() -> None:
    built = rig(max_batch_size=1)
    for seed, priority in enumerate((0.1, 0.5, 0.9, 0.5)):
        built.submit(text(10, seed), 1, priority=priority)
    order = []
    while built.scheduler.n_unfinished:
        order += [init.seq_id for init in turn(built).inits]
    assert order == [2, 1, 3, 0]


def test_control_runs_between_steps() -> None:
    built = rig()
    built.submit(text(40), 2)
    built.drain()
    seen = []
    built.ingest(Control(lambda scheduler: seen.append(scheduler.manager.evict_all()), seen.append))
    assert seen == [None]
    assert built.manager.index.n_entries == 0


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_num_tokens=0"):
        SchedulerOptions(4, 0, 100)
    with pytest.raises(ConfigError, match="max_queue_size=0"):
        SchedulerOptions(4, 4, 100, max_queue_size=0)
    with pytest.raises(ConfigError, match="one of MAX_UTILIZATION"):
        rig(capacity_policy="MAX")
    with pytest.raises(ConfigError, match="one of FIRST_COME"):
        rig(chunking_policy="MAX")
