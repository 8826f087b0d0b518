"""``Executor``: what the engine loop asks of whoever computes the steps."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from headrace.cache.arena import NO_TIERS, ArenaLayout, TierSizes
from headrace.cache.groups import CacheGroup
from headrace.core.plan import StepPlan, StepResult
from headrace.core.pooling import PoolingSpec


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a started executor can hold: all that the host needs to know of the model and the memory."""

    n_slots: int
    """Sequences that run at once."""
    max_seq_len: int
    """Prompt and output of one sequence."""
    vocab_size: int
    groups: tuple[CacheGroup, ...]
    arena: ArenaLayout
    """Sectors and blocks, the null sector included."""
    tiers: TierSizes = NO_TIERS
    """Sectors of the same size below it."""
    narrowed: tuple[int, ...] = ()
    """Groups with layers whose windows were set by hand."""
    reads_whole_prompts: bool = False
    """The model computes a prompt in one step or not at all."""
    pooling: PoolingSpec = field(default_factory=PoolingSpec)
    """What the model gives for a pooled row."""


class Executor(Protocol):
    """Computes steps, in the order in which they are submitted. One loop uses it, from one thread.

    The worker owns the truth of every slot (``core.plan``): under overlap a plan speaks of upper bounds, and the order
    of submission is what makes them come true. An executor whose worker dies completes every future with an error.
    """

    def start(self) -> Capacity:
        """Builds the model, takes the memory. Called once, before anything else. Raises what building raises."""
        ...

    def submit(self, plan: StepPlan) -> Future[StepResult]:
        """Queues a step and returns at once. The future fails with whatever the step raised; a mistake in one request
        is no such thing, it comes back as ``SeqResult.error``. Raises ``EngineDeadError`` when not running."""
        ...

    def call(self, name: str, *args: Any) -> Any:
        """Runs the worker's method ``name`` after the steps submitted so far, and returns its result."""
        ...

    def health(self) -> None:
        """Raises ``EngineDeadError`` if the worker can compute no more. Quick; any thread may ask."""
        ...

    def close(self) -> None:
        """Finishes what was submitted, gives the memory back. May be called twice. Raises ``EngineError`` if something
        that was to be kept could not be."""
        ...
