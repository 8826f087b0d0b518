"""Load on an engine: closed-loop clients, each sending its next request when the one before has ended."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headrace.core.clock import Clock
from headrace.core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from headrace.llm import LLM


@dataclass(slots=True)
class Timing:
    """One request. Clock readings."""

    submitted: float
    n_prompt: int
    n_cached: int = 0
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    """(time, tokens) of every step that brought some."""

    @property
    def n_output(self) -> int:
        return sum(count for _, count in self.arrivals)

    @property
    def to_first_token(self) -> float:
        """Seconds from submission to the first token (TTFT)."""
        return self.arrivals[0][0] - self.submitted

    @property
    def end(self) -> float:
        return self.arrivals[-1][0]

    def gaps(self) -> list[float]:
        """Inter-token latencies in seconds. The k tokens of a step that brought several share its gap evenly."""
        found: list[float] = []
        for (before, _), (now, count) in zip(self.arrivals, self.arrivals[1:], strict=False):
            found += [(now - before) / count] * count
        return found


def random_prompts(count: int, length: int, vocab_size: int, seed: int) -> list[list[int]]:
    """Token ids drawn evenly: no two prompts share a prefix, so the cache cannot help."""
    draw = random.Random(seed)
    return [[draw.randrange(vocab_size) for _ in range(length)] for _ in range(count)]


def run_load(
    llm: LLM,
    prompts: Sequence[list[int]],
    params: SamplingParams,
    *,
    concurrency: int,
    clock: Clock,
    on_done: Callable[[Timing], None],
) -> list[Timing]:
    """Sends every prompt, ``concurrency`` at a time. A request that fails raises its error and ends the run."""
    waiting = iter(prompts)

    async def run() -> list[Timing]:
        done: list[Timing] = []
        async with asyncio.TaskGroup() as clients:
            for _ in range(min(concurrency, len(prompts))):
                clients.create_task(_client(llm, waiting, params, clock, done, on_done))
        return done

    return asyncio.run(run())


async def _client(
    llm: LLM,
    waiting: Iterator[list[int]],
    params: SamplingParams,
    clock: Clock,
    done: list[Timing],
    on_done: Callable[[Timing], None],
) -> None:
    for prompt in waiting:
        timing = Timing(clock.now(), len(prompt))
        output = llm.generate_async(prompt, params, streaming=True)
        try:
            async for step in output:
                fresh = len(step.outputs[0].token_ids_diff)
                if fresh:
                    timing.arrivals.append((clock.now(), fresh))
        except BaseException:
            output.abort()
            raise
        timing.n_cached = output.cached_tokens
        done.append(timing)
        on_done(timing)
