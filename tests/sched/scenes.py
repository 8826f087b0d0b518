"""What the scenes share: a rig of usual size, texts, and ways to drive it."""

from __future__ import annotations

from sim_rig import Rig, RigConfig, full

from headrace.cache.manager import CacheOptions
from headrace.core.plan import StepPlan
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


def run_until_preempted(built: Rig) -> None:
    """Stops right after the plan that preempts somebody."""
    while True:
        planned = len(built.in_flight) < 2 and built.plan()
        if built.scheduler.counters()["preemptions"]:
            return
        if not planned:
            built.apply()
