"""What the scheduler costs: planning and applying a step of 64 running sequences, with and without a long queue.

Run: python bench/scheduler.py [--steps 2000]. Results come from a worker that only makes up tokens, so that what is
timed is the scheduler and the cache alone. The promise is a median under one millisecond, also with 10,000 requests
waiting. For comparison: the same with n-gram drafts, the proposer's own work for each of the 64 included.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections import deque

from headrace.cache.arena import arena_for_tokens
from headrace.cache.groups import group_layers
from headrace.cache.manager import CacheManager, CacheOptions
from headrace.cache.specs import FullKV, SlidingKV
from headrace.core.clock import SystemClock
from headrace.core.plan import Rows, SeqResult, StepPlan, StepResult
from headrace.core.request import Request
from headrace.core.sampling_params import SamplingParams
from headrace.sched.commands import Submit
from headrace.sched.options import SchedulerOptions
from headrace.sched.scheduler import Scheduler
from headrace.spec.ngram import NGramProposer
from headrace.spec.proposer import NoProposer, Proposer

N_RUNNING = 64
PROMPT, OUTPUT = 512, 4000
LIMIT_MS = 1.0


class Parrot:
    """The worker's part: true lengths per slot, and a token that changes with the position."""

    def __init__(self) -> None:
        self._computed: dict[int, int] = {}

    def execute(self, plan: StepPlan) -> StepResult:
        for init in plan.inits:
            self._computed[init.slot] = init.computed
        results = []
        for work in plan.works:
            computed = self._computed[work.slot] = self._computed[work.slot] + work.n_tokens
            tokens = () if work.outputs is Rows.NONE else (computed % 97,)
            results.append(SeqResult(work.slot, work.seq_id, computed, tokens, len(work.draft_tokens)))
        return StepResult(plan.step, tuple(results))


def scheduler(n_queued: int, proposer: Proposer, depth: int, n_prompt: int = PROMPT) -> Scheduler:
    """64 running sequences and ``n_queued`` waiting ones, prompts all different."""
    specs = [SlidingKV(4, 64, 2, 512)] * 5 + [FullKV(4, 64, 2)]
    groups = group_layers(specs)
    manager = CacheManager(groups, arena_for_tokens(groups, (N_RUNNING + 1) * (n_prompt + OUTPUT)), CacheOptions())
    options = SchedulerOptions(N_RUNNING, 2048, n_prompt + OUTPUT, depth=depth)
    built = Scheduler(manager, options, proposer, SystemClock())
    sampling = SamplingParams(max_tokens=OUTPUT, ignore_eos=True)
    for i in range(N_RUNNING + n_queued):
        prompt = tuple((i * 31 + j * 7) % 5003 for j in range(n_prompt))
        built.ingest([Submit(Request(i, prompt, sampling, 0, float(i)))])
    return built


def measure(built: Scheduler, steps: int, depth: int) -> tuple[float, float]:
    """(median, 99th percentile) in milliseconds of one plan and one apply, once all 64 decode. Time of this thread, so
    that neighbours on a busy machine do not count."""
    worker, in_flight = Parrot(), deque()
    times = []
    warm = 100
    for step in range(steps + warm):
        begin = time.thread_time()
        built.ingest(())
        while len(in_flight) < depth and (plan := built.plan()) is not None:
            spent = time.thread_time()
            in_flight.append(worker.execute(plan))
            begin += time.thread_time() - spent
        built.apply(in_flight.popleft())
        if step >= warm:
            times.append(1e3 * (time.thread_time() - begin))
    assert built.stats()["numActiveRequests"] == N_RUNNING
    times.sort()
    return times[len(times) // 2], times[len(times) * 99 // 100]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    steps = parser.parse_args().steps
    print(f"plan + apply of {N_RUNNING} running sequences, full and sliding layers, {steps} steps, milliseconds")
    worst = 0.0
    proposers = {"plain": NoProposer, "n-gram": lambda: NGramProposer(max_draft_len=4)}
    for name, new_proposer in proposers.items():
        for n_queued in (0, 10_000):
            for depth in (1, 2):
                built = scheduler(n_queued, new_proposer(), depth)
                gc.collect()
                median, p99 = measure(built, steps, depth)
                worst = max(worst, median if name == "plain" else 0.0)
                print(f"{name:8} queued {n_queued:6,}  depth {depth}  p50 {median:6.3f}  p99 {p99:6.3f}")
    verdict = "kept" if worst < LIMIT_MS else "BROKEN"
    print(f"promise of {LIMIT_MS} ms at the median: {verdict}")


if __name__ == "__main__":
    main()
