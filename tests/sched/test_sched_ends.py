"""Scenes: how sequences end, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from scenes import FOREVER, rig, run_until_preempted, text, turn
from sim_rig import Rig

from headrace.core.errors import ConfigError, IntegrityError, PromptTooLongError, QueueFullError, RequestError
from headrace.core.plan import FinishReason, SeqResult, StepResult
from headrace.sched.commands import Control, Submit
from headrace.sched.options import SchedulerOptions

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
    spoiled = msgspec.structs.replace(result.results[0], tokens=(), error="token 3 has logits that are not numbers")
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
