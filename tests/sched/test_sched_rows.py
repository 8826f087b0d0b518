"""Scenes: who gets rows, step by step, and how steps overlap."""

from __future__ import annotations

from collections import Counter

import pytest
from scenes import FOREVER, rig, rows, text, turn
from sim_rig import STOP

from headrace.core.plan import FinishReason, Rows

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
