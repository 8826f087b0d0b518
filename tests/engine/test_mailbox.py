"""The queue between whoever brings the news and whoever waits for them: threads and coroutines, in every pairing."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from headrace.engine.results import Mailbox, OutputEvent

EVENT = OutputEvent(0, "a")


def test_a_thread_wakes_a_thread() -> None:
    box = Mailbox()
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(box.take, 10.0)
        time.sleep(0.05)
        box.post([EVENT])
        assert taken.result(1.0) == [EVENT]
    with pytest.raises(TimeoutError):
        box.take(0.01)


def test_a_thread_wakes_a_coroutine_by_the_way_that_is_safe() -> None:
    box = Mailbox()

    async def main() -> None:
        posted: Future[None] = Future()

        def post() -> None:
            try:
                posted.set_result(box.post([EVENT]))
            except BaseException as error:  # noqa: BLE001  raised below
                posted.set_exception(error)

        threading.Timer(0.05, post).start()
        assert await asyncio.wait_for(box.take_async(), 10.0) == [EVENT]
        posted.result(1.0)

    # In debug mode asyncio refuses what is not safe from another thread.
    asyncio.run(main(), debug=True)


def test_a_coroutine_wakes_another_and_one_that_has_given_up_is_no_trouble() -> None:
    box = Mailbox()

    async def main() -> None:
        for _ in range(2):
            gone = asyncio.ensure_future(box.take_async())
            await asyncio.sleep(0)
            gone.cancel()
            box.post([EVENT])
            box.post([EVENT])
            assert await box.take_async() == [EVENT, EVENT]
        waiting = asyncio.ensure_future(box.take_async())
        await asyncio.sleep(0)
        box.post([EVENT])
        box.post([EVENT])
        assert await waiting == [EVENT, EVENT]

    asyncio.run(main(), debug=True)


def test_events_for_a_loop_that_has_ended_are_kept() -> None:
    box = Mailbox()

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(box.take_async(), 0.01)

    asyncio.run(give_up())
    box.post([EVENT])
    assert box.take(0.1) == [EVENT]
