"""The backend in another process, and what travels: equal to the backend here in all that can be seen of it."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core import errors
from headrace.core.clock import SystemClock
from headrace.core.errors import ConfigError, EngineDeadError, HeadraceError, PromptTooLongError, RequestError
from headrace.core.outputs import MissReason, SequenceUpdate
from headrace.core.phases import Phases
from headrace.core.plan import FinishReason, TokenLogprobs
from headrace.core.request import Request
from headrace.core.sampling_params import SamplingParams
from headrace.engine import wire
from headrace.engine.engine import Engine
from headrace.engine.remote import RemoteBackend
from headrace.engine.spawn import spawn
from headrace.sim.engine import COMMAND, build_sim

WAIT = 10.0
SETTINGS = {"max_batch_size": 4, "max_num_tokens": 64, "max_seq_len": 256, "vocab_size": 50, "cache_tokens": 2048}

# The wire.

ids = st.integers(0, 1 << 63)
numbers = st.floats(-1e30, 1e30)
samplings = st.builds(
    dict,
    max_tokens=st.none() | st.integers(10, 1 << 64),
    min_tokens=st.none() | st.integers(0, 10),
    stop=st.none() | st.lists(st.text(min_size=1)) | st.text(min_size=1),
    stop_token_ids=st.none() | st.lists(ids),
    bad_token_ids=st.none() | st.lists(ids | st.lists(ids, min_size=1)),
    embedding_bias=st.none() | st.dictionaries(ids, numbers) | st.just({3: float("-inf")}),
    temperature=st.floats(0.1, 5.0),
    top_p=st.none() | st.floats(0.01, 1.0),
    seed=st.none() | st.integers(0, (1 << 64) - 1),
    repetition_penalty=st.none() | st.floats(0.1, 5.0),
    n=st.integers(1, 5),
    logprobs=st.none() | st.integers(0, 20),
    ignore_eos=st.booleans(),
)


@settings(max_examples=200, deadline=None)
@given(samplings, st.lists(ids, min_size=1), ids, st.none() | numbers, st.none() | st.text(), st.frozensets(ids))
def test_a_request_arrives_as_it_was_sent(
    options: dict[str, Any], prompt: list[int], seed: int, when: float | None, salt: str | None, eos: frozenset[int]
) -> None:
    sampling = {name: value for name, value in options.items() if (name, value) != ("max_tokens", 1 << 64)}
    request = Request(7, tuple(prompt), SamplingParams(**sampling), seed, 1.5, eos, 0.25, when, salt)
    arrived = wire.decode_command(wire.encode(wire.Submit(request)))
    assert isinstance(arrived, wire.Submit)
    assert arrived.request == request
    assert repr(arrived.request.sampling) == repr(request.sampling)


def test_news_arrive_as_they_were_sent() -> None:
    entry = TokenLogprobs(5, float("-inf"), 3, (1, 2), (-0.25, -1.5))
    updates = [
        SequenceUpdate(1, 0),
        SequenceUpdate(1, 2, (5, 6), (entry, entry), (entry,), FinishReason.STOP, "word", None, 32, time=1.25),
        SequenceUpdate(2, 0, stop_reason=7, cache_miss=MissReason.EVICTED, n_preempted=3),
    ]
    arrived = wire.decode_event(wire.encode(wire.News(updates)))
    assert arrived == wire.News(updates)


@pytest.mark.parametrize(
    "kind", [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, HeadraceError)]
)
def test_errors_keep_class_text_and_field(kind: type[HeadraceError]) -> None:
    error = kind("no", param="prompt") if issubclass(kind, RequestError) else kind("no")  # type: ignore[call-arg]
    update = wire.decode_event(wire.encode(wire.News([SequenceUpdate(1, 0, error=error)]))).updates[0]
    assert type(update.error) is kind
    assert str(update.error) == "no"
    assert getattr(update.error, "param", None) == getattr(error, "param", None)


def test_an_error_of_somebody_elses_is_one_of_the_engine() -> None:
    error = wire.error_of(wire.fault_of(MemoryError("no more"), "the traceback"))
    assert type(error) is EngineDeadError
    assert str(error) == "MemoryError: no more"
    assert error.__notes__ == ["the traceback"]


# The backend.


@asynccontextmanager
async def engine(**changes: Any) -> AsyncIterator[tuple[Engine, RemoteBackend]]:
    backend = RemoteBackend.build(spawn(COMMAND), SETTINGS | changes, SystemClock(), WAIT)
    try:
        made = Engine(backend, backend.report(), None, SystemClock(), backend.connect)
        made.connect(asyncio.get_running_loop())
        yield made, backend
        lives = backend.health().dead is None
        backend.shutdown()
        assert backend.health().dead is not None
        assert not lives or backend._process.returncode == 0, "it had to be killed"
    finally:
        backend.shutdown()


def run(test: Callable[[Engine, RemoteBackend], Any], **changes: Any) -> None:
    async def main() -> None:
        async with asyncio.timeout(30), engine(**changes) as (made, backend):
            await test(made, backend)

    asyncio.run(main())


def options(**more: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 20, "end_id": -1, **more})


def test_it_gives_what_the_backend_here_gives() -> None:
    prompts = [tuple((which * 5 + place) % 50 for place in range(3 + 30 * which)) for which in range(4)]
    here, report = build_sim(SETTINGS, Phases())
    local = Engine(here, report, None, SystemClock())
    wanted = [local.front.submit(None, prompt, options(seed=3, temperature=1.0, n=2, logprobs=1)) for prompt in prompts]
    expected = [[(one.token_ids, one.logprobs) for one in output.result(WAIT).outputs] for output in wanted]
    local.shutdown()

    async def compare(made: Engine, backend: RemoteBackend) -> None:
        outputs = [
            made.front.submit(None, prompt, options(seed=3, temperature=1.0, n=2, logprobs=1)) for prompt in prompts
        ]
        got = [[(one.token_ids, one.logprobs) for one in (await output).outputs] for output in outputs]
        assert got == expected
        await asyncio.wrap_future(backend.call("check_idle"))

    run(compare)


def test_a_request_that_cannot_be_served_ends_with_its_error_and_hurts_nobody() -> None:
    async def ask(made: Engine, backend: RemoteBackend) -> None:
        beside = made.front.submit(None, (1, 2), options(max_tokens=100))
        with pytest.raises(PromptTooLongError, match="max_seq_len=256"):
            await made.front.submit(None, (1, 2, 3), options(max_tokens=300))
        with pytest.raises(RequestError, match="max_tokens") as caught:
            made.front.submit(None, (1, 2, 3), options(max_tokens=1 << 70))
        assert caught.value.param == "max_tokens"
        assert (await beside).outputs[0].length == 100
        assert made.front.n_live == 0

    run(ask)


def test_cancelled_and_finished_outputs_leave_nothing() -> None:
    async def ask(made: Engine, backend: RemoteBackend) -> None:
        outputs = [made.front.submit(None, (which,), options(max_tokens=200), streaming=True) for which in range(9)]
        await outputs[0].step()
        assert outputs[0].outputs[0].token_ids
        with pytest.raises(errors.IntegrityError, match="not idle"):
            await asyncio.wrap_future(backend.call("check_idle"))
        for one in outputs:
            one.abort()
        backend.finish(outputs[0].request_id, 0, FinishReason.STOP)
        for one in outputs:
            await one
        await asyncio.wrap_future(backend.call("check_idle"))
        *_, snapshot = await made.get_stats_async(WAIT)
        assert snapshot["witnesses"]["cancelled"] + snapshot["witnesses"]["finished"] >= 9

    run(ask, step_seconds=0.005)


def test_steps_that_pile_up_while_the_event_loop_is_busy_are_all_taken_in() -> None:
    async def ask(made: Engine, backend: RemoteBackend) -> None:
        output = made.front.submit(None, (1,), options(max_tokens=200), streaming=True)
        await output.step()
        time.sleep(0.5)  # the rest arrives meanwhile, in many more messages than are read at once
        n_steps = 0
        while not output.finished:
            await output.step()
            n_steps += 1
        assert output.outputs[0].length == 200
        assert n_steps < 100

    run(ask)


def test_a_call_that_nobody_knows_is_refused() -> None:
    async def ask(made: Engine, backend: RemoteBackend) -> None:
        with pytest.raises(ConfigError, match=r"'leases'.*check_integrity"):
            await asyncio.wrap_future(backend.call("leases"))
        assert backend.health().dead is None

    run(ask)


def test_a_killed_process_fails_requests_calls_and_whatever_comes_later() -> None:
    async def ask(made: Engine, backend: RemoteBackend) -> None:
        output = made.front.submit(None, (1,), options(max_tokens=200, temperature=1.0, n=2), streaming=True)
        await output.step()
        backend._process.send_signal(signal.SIGSTOP)
        call = asyncio.wrap_future(backend.call("stats"))
        backend._process.kill()
        for waiting in (output.aresult(), call):
            with pytest.raises(EngineDeadError, match="SIGKILL"):
                await waiting
        assert "SIGKILL" in str(backend.health().dead)
        for late in (lambda: backend.call("stats"), lambda: made.front.submit(None, (1,), options())):
            with pytest.raises(EngineDeadError, match="SIGKILL"):
                late()
        assert made.front.n_live == 0

    run(ask, step_seconds=0.01)


def test_the_heart_beats_on_when_idle_and_stands_still_when_stopped() -> None:
    async def watch(made: Engine, backend: RemoteBackend) -> None:
        first = backend.health().heartbeat
        for _ in range(10):
            await asyncio.sleep(0.1)
            latest = backend.health().heartbeat
        assert latest > first + 0.4
        backend._process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(0.1)
        stopped = backend.health().heartbeat
        for _ in range(6):
            await asyncio.sleep(0.1)
            assert backend.health().heartbeat == stopped
        backend._process.send_signal(signal.SIGCONT)

    run(watch)


def test_what_building_raises_is_raised_here_and_its_log_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headrace")
    backend = RemoteBackend.build(spawn(COMMAND), {"max_batch": 3, "max_batch_size": "x"}, SystemClock(), WAIT)
    try:
        with pytest.raises(EngineDeadError, match=r"ValidationError: .*max_batch_size") as caught:
            backend.report()
    finally:
        backend.shutdown()
    assert "build_sim" in "".join(caught.value.__notes__)
    assert "start engine process: " in caplog.text
    assert issubclass(msgspec.ValidationError, ValueError)


def test_there_must_be_room_for_the_names_of_the_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("a" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with pytest.raises(ConfigError, match="TMPDIR"):
        RemoteBackend.build(spawn(COMMAND), SETTINGS, SystemClock(), WAIT)
    assert not list(deep.iterdir())
