"""An engine over the sim executor in a process of its own, in the place of ``engine.main``.

Its steps take no longer than their Python does, so that what is around it can be measured and tested.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import msgspec

from headrace.cache.arena import arena_for_tokens
from headrace.cache.groups import group_layers
from headrace.cache.manager import CacheManager, CacheOptions
from headrace.cache.specs import CacheSpec, FullKV, SlidingKV
from headrace.core.clock import SystemClock, VirtualClock
from headrace.core.errors import RequestError
from headrace.core.phases import Phases
from headrace.engine.backend import StartReport
from headrace.engine.grammars import Compile, GrammarCompiling
from headrace.engine.local import LocalBackend
from headrace.engine.process import main
from headrace.engine.stats import StatsRecorder
from headrace.executor.base import Capacity
from headrace.executor.sim import SimCost, SimExecutor
from headrace.sched.options import SchedulerOptions
from headrace.sched.scheduler import Scheduler
from headrace.spec.proposer import NoProposer

COMMAND = (sys.executable, "-P", "-m", "headrace.sim.engine")
"""For ``engine.spawn``."""


class SimSettings(msgspec.Struct, frozen=True):
    """What the sim engine is built from."""

    max_batch_size: int = 64
    max_num_tokens: int = 2048
    max_seq_len: int = 4096
    vocab_size: int = 1000
    cache_tokens: int = 64 * 4096
    window: int | None = None
    """Sliding window of the one layer; None: all that came before is read for each token, which takes its time."""
    step_seconds: float = 0.0
    """What a step takes, beside its Python."""


class _Sleeper(VirtualClock):
    """Time passes for everybody."""

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        time.sleep(seconds)


def build_sim(settings: dict[str, Any], phases: Phases) -> tuple[LocalBackend, StartReport]:
    """As ``engine.build.build_backend``, without a model."""
    with phases.time("build sim engine"):
        wanted = msgspec.convert(settings, SimSettings)
        backend = _assemble(wanted)
    return backend, StartReport(
        vocab_size=wanted.vocab_size,
        max_seq_len=wanted.max_seq_len,
        max_input_len=wanted.max_seq_len - 1,
        eos_ids=frozenset(),
        phases=phases.done,
        memory=[],
        effective=msgspec.to_builtins(wanted),
    )


def _assemble(wanted: SimSettings) -> LocalBackend:
    spec: CacheSpec = FullKV(1, 16, 2) if wanted.window is None else SlidingKV(1, 16, 2, wanted.window)
    groups = group_layers((spec,))
    arena = arena_for_tokens(groups, wanted.cache_tokens)
    options = SchedulerOptions(wanted.max_batch_size, wanted.max_num_tokens, wanted.max_seq_len, depth=2)
    clock = SystemClock()
    scheduler = Scheduler(CacheManager(groups, arena, CacheOptions()), options, NoProposer(), clock)
    capacity = Capacity(wanted.max_batch_size, wanted.max_seq_len, wanted.vocab_size, groups, arena)
    cost = SimCost(wanted.step_seconds, 0.0)
    executor = SimExecutor(capacity, _Sleeper() if wanted.step_seconds else VirtualClock(), cost)
    stats = StatsRecorder(scheduler, clock, 1000)
    grammars = GrammarCompiling(_no_grammars, clock)
    return LocalBackend(executor, scheduler, options.depth, clock, stats, grammars, lambda: None)


def _no_grammars() -> Compile:
    raise RequestError("guided_decoding: made-up tokens follow no grammar", param="guided_decoding")


if __name__ == "__main__":
    main(build_sim)
