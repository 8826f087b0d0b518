"""Load on a server: closed-loop clients, or requests that come at random times whether the server keeps up or not."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.core.clock import Clock

from .http_client import HttpFailure, Target, events
from .load import Timing

COMPLETIONS = "/v1/completions"


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When requests are sent: ``concurrency`` at a time, or ``rate`` a second on average (Poisson) with at most
    ``concurrency`` under way; None: no such limit."""

    concurrency: int | None
    rate: float | None = None
    seed: int = 0

    def gaps(self) -> Iterator[float]:
        """Seconds between one request and the next, without end. Only with ``rate``."""
        assert self.rate is not None
        draw = random.Random(self.seed)
        while True:
            yield draw.expovariate(self.rate)


@dataclass(slots=True)
class Outcome:
    """What became of all requests."""

    timings: list[Timing] = field(default_factory=list)
    """Those that were answered to the end."""
    failures: Counter[str] = field(default_factory=Counter)
    """By kind."""
    examples: dict[str, str] = field(default_factory=dict)
    """What the first of each kind said."""
    most_at_once: int = 0

    def fail(self, failure: HttpFailure) -> None:
        self.failures[failure.kind] += 1
        self.examples.setdefault(failure.kind, str(failure))


async def measure(target: Target, body: dict[str, Any], clock: Clock, timeout: float | None) -> Timing:
    """Sends one streamed completion and times its tokens. Raises ``HttpFailure``.

    Tokens are counted by the usage that chunks carry, if they do; else each chunk with text counts as one, and what
    the usage at the end has more is laid to the last of them.
    """
    timing = Timing(clock.now(), n_prompt=0)
    usage: dict[str, Any] = {}
    try:
        async with asyncio.timeout(timeout), contextlib.aclosing(events(target, COMPLETIONS, body)) as stream:
            async for event in stream:
                usage = event.get("usage") or usage
                _count(timing, event, clock.now())
    except TimeoutError:
        raise HttpFailure("timeout", f"no whole answer within {timeout} s") from None
    if not timing.arrivals:
        raise HttpFailure("no tokens", "the answer has no tokens")
    timing.n_prompt = usage.get("prompt_tokens", 0)
    timing.n_cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return timing


def _count(timing: Timing, event: dict[str, Any], now: float) -> None:
    usage, choices = event.get("usage"), event.get("choices") or ()
    if usage is None:
        fresh = int(any(choice.get("text") for choice in choices))
    else:
        fresh = usage.get("completion_tokens", 0) - timing.n_output
    if fresh <= 0:
        return
    if not choices and timing.arrivals:
        last, count = timing.arrivals[-1]
        timing.arrivals[-1] = (last, count + fresh)
    else:
        timing.arrivals.append((now, fresh))


async def run_http_load(
    bodies: Sequence[dict[str, Any]],
    arrivals: Arrivals,
    send: Callable[[dict[str, Any]], Awaitable[Timing]],
    on_done: Callable[[Outcome], None],
) -> Outcome:
    """Sends every body. A request that fails is counted, and the others go on."""
    outcome = Outcome()
    running = 0

    async def one(body: dict[str, Any]) -> None:
        nonlocal running
        running += 1
        outcome.most_at_once = max(outcome.most_at_once, running)
        try:
            outcome.timings.append(await send(body))
        except HttpFailure as failure:
            outcome.fail(failure)
        finally:
            running -= 1
        on_done(outcome)

    async def client(waiting: Iterator[dict[str, Any]]) -> None:
        for body in waiting:
            await one(body)

    async with asyncio.TaskGroup() as group:
        if arrivals.rate is not None:
            await _at_random_times(bodies, arrivals, one, group)
        else:
            waiting = iter(bodies)
            for _ in range(min(arrivals.concurrency or len(bodies), len(bodies))):
                group.create_task(client(waiting))
    return outcome


async def _at_random_times(
    bodies: Sequence[dict[str, Any]],
    arrivals: Arrivals,
    one: Callable[[dict[str, Any]], Awaitable[None]],
    group: asyncio.TaskGroup,
) -> None:
    """Times are laid down beforehand, so that a late one does not push back those after it."""
    loop = asyncio.get_running_loop()
    places = asyncio.Semaphore(arrivals.concurrency or len(bodies))

    async def when_there_is_a_place(body: dict[str, Any]) -> None:
        async with places:
            await one(body)

    due = loop.time()
    for body, gap in zip(bodies, arrivals.gaps(), strict=False):
        await asyncio.sleep(max(0.0, due - loop.time()))
        group.create_task(when_there_is_a_place(body))
        due += gap
