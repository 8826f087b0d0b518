"""The sim executor: a worker without tensors, on a virtual clock.

It keeps the contract of ``core.plan`` to the letter (slots own the truth, bounds are resolved, stopped slots give
nothing) over a simulated cache, and refuses plans that break it: a block written while a step in flight of somebody
else still uses it, a read through the null block, a work that does not fit its slot.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from headrace.cache.specs import RecurrentState
from headrace.core.clock import VirtualClock
from headrace.core.errors import EngineDeadError, IntegrityError
from headrace.core.plan import (
    BLOCK_TOKENS,
    FROM_DRAFTER,
    BlockMove,
    FinishReason,
    MoveKind,
    Rows,
    SeqResult,
    SeqWork,
    SlotInit,
    StepPlan,
    StepResult,
)
from headrace.core.pooling import Pooled

from .base import Capacity
from .sim_model import SimModel, mix

_SAMPLED = (Rows.LAST, Rows.DRAFTS)
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class SimCost:
    """Seconds on the virtual clock: one step takes ``step + rows * row``."""

    step: float = 0.001
    row: float = 0.0001


@dataclass(slots=True)
class _Slot:
    """The truth of one slot."""

    init: SlotInit
    history: list[int]
    computed: int
    stopped: bool = False
    tables: list[list[int]] = field(default_factory=list)
    pooled: int = 0
    drafted: dict[int, int] = field(default_factory=dict)
    """Digests of draft rows by position, until it is known whether they count: a state cannot be taken back."""

    def block(self, group: int, position: int) -> int:
        table, number = self.tables[group], position // BLOCK_TOKENS
        block = table[number] if number < len(table) else 0
        if not block:
            raise IntegrityError(f"position {position} of group {group} has no block: {self.init.seq_id}, {table}")
        return block


class _SimFuture(Future[StepResult]):
    """Waiting for it turns the clock to the end of the step."""

    def __init__(self, result: StepResult, landed: Callable[[], None]) -> None:
        super().__init__()
        self._landed = landed
        self.set_result(result)

    def result(self, timeout: float | None = None) -> StepResult:
        self._landed()
        return super().result(timeout)


class SimExecutor:
    """Computes a step when it is submitted; its result arrives when the step's time is over."""

    def __init__(self, capacity: Capacity, clock: VirtualClock, cost: SimCost | None = None) -> None:
        self._capacity = capacity
        self._clock = clock
        self._cost = cost or SimCost()
        self.model = SimModel(tuple(group.spec for group in capacity.groups), capacity.vocab_size)
        self._slots: list[_Slot | None] = [None] * capacity.n_slots
        n_blocks = [capacity.arena.n_blocks(group) for group in range(len(capacity.groups))]
        self._store = [[[0] * BLOCK_TOKENS for _ in range(count)] for count in n_blocks]
        """Digests by group, block and offset. Of a state: that of its last row, and how many tokens it is after."""
        self._tiers: dict[tuple[bool, int, int], list[int]] = {}
        """The same of blocks in the tiers below, by whether they are on disk, group and place."""
        self.disk_fails: Callable[[], bool] = lambda: False
        """Whether the next move from or to the disk fails."""
        self._in_flight: deque[dict[tuple[int, int], int]] = deque()
        """For each step that has not landed: (group, block) in use, and by which sequence."""
        self._busy_until = 0.0
        self._closed = False

    def start(self) -> Capacity:
        return self._capacity

    def submit(self, plan: StepPlan) -> Future[StepResult]:
        if self._closed:
            raise EngineDeadError("the sim executor is closed")
        self._bind(plan)
        seconds = self._cost.step + plan.n_rows * self._cost.row
        self._busy_until = done = max(self._busy_until, self._clock.now()) + seconds
        self._check_writes(plan)
        self._in_flight.append(self._blocks_in_use(plan))
        failed = self._move_and_copy(plan)
        results = tuple(self._run(work) for work in plan.works)
        return _SimFuture(StepResult(plan.step, results, seconds, failed_moves=failed), lambda: self._land(done))

    def call(self, name: str, *args: Any) -> Any:
        return getattr(self, name)(*args)

    def health(self) -> None:
        if self._closed:
            raise EngineDeadError("the sim executor is closed")

    def close(self) -> None:
        self._closed = True

    def _move_and_copy(self, plan: StepPlan) -> tuple[int, ...]:
        """Places of the moves that failed."""
        failed = []
        for place in range(len(plan.moves) + 1):
            for copy in plan.copies:
                if copy.after == place:
                    self._store[copy.group][copy.dst] = list(self._store[copy.group][copy.src])
            if place < len(plan.moves) and not self._move(plan.moves[place]):
                failed.append(place)
        return tuple(failed)

    def _move(self, move: BlockMove) -> bool:
        """True if it was made. A block that never came to a tier cannot be moved from there."""
        from_disk, to_disk = move.kind is MoveKind.FETCH, move.kind is MoveKind.SPILL
        if (from_disk or to_disk) and self.disk_fails():
            self._tiers.pop((to_disk, move.group, move.dst), None)
            return False
        if move.kind is MoveKind.OFFLOAD:
            content = list(self._store[move.group][move.src])
        elif (from_disk, move.group, move.src) in self._tiers:
            content = list(self._tiers[from_disk, move.group, move.src])
        elif from_disk:
            return False
        else:
            raise IntegrityError(f"{move} reads a place that nothing was brought to")
        if move.kind is MoveKind.ONBOARD:
            self._store[move.group][move.dst] = content
        else:
            self._tiers[to_disk, move.group, move.dst] = content
        return True

    def _land(self, done: float) -> None:
        self._in_flight.popleft()
        self._clock.advance(max(0.0, done - self._clock.now()))

    def _bind(self, plan: StepPlan) -> None:
        for append in plan.appends:
            self._slot(append.slot).history.append(append.token)
        for init in plan.inits:
            tables: list[list[int]] = [[] for _ in self._capacity.groups]
            self._slots[init.slot] = _Slot(init, list(init.tokens), init.computed, tables=tables)
        for update in plan.block_updates:
            table = self._slot(update.slot).tables[update.group]
            if update.first > len(table):
                raise IntegrityError(f"{update} leaves a gap in the block table {table}")
            last = len(table) if update.first == 0 else update.first + len(update.blocks)
            table[update.first : last] = update.blocks

    def _slot(self, index: int) -> _Slot:
        slot = self._slots[index]
        if slot is None:
            raise IntegrityError(f"slot {index} is used before a sequence was bound to it")
        return slot

    def _check_writes(self, plan: StepPlan) -> None:
        """What this step writes must not be in use by another sequence in a step that has not landed."""
        writes = {(copy.group, copy.dst): -1 for copy in plan.copies}
        writes |= {(move.group, move.dst): -3 for move in plan.moves if move.kind is MoveKind.ONBOARD}
        for work in plan.works:
            slot = self._slot(work.slot)
            for position in {work.start, *range(work.start, work.end, BLOCK_TOKENS), work.end - 1}:
                for group in range(len(slot.tables)):
                    writes[group, slot.block(group, position)] = work.seq_id
        for in_use in self._in_flight:
            for key, seq_id in writes.items():
                if in_use.get(key, seq_id) != seq_id:
                    raise IntegrityError(f"block {key} is written by {seq_id} while a step in flight uses it")

    def _blocks_in_use(self, plan: StepPlan) -> dict[tuple[int, int], int]:
        """Blocks that only one sequence of the step may touch: those it writes; and those it copies from."""
        in_use: dict[tuple[int, int], int] = {
            (copy.group, copy.src): -2 for copy in plan.copies if not copy.from_running
        }
        for work in plan.works:
            slot = self._slot(work.slot)
            for group, spec in enumerate(self.model.specs):
                first = spec.needed_from(slot.computed) // BLOCK_TOKENS
                for block in slot.tables[group][first:]:
                    in_use[group, block] = work.seq_id
        return in_use

    def _run(self, work: SeqWork) -> SeqResult:
        slot = self._slot(work.slot)
        if slot.init.seq_id != work.seq_id:
            raise IntegrityError(f"{work} names a slot that holds sequence {slot.init.seq_id}")
        if slot.stopped:
            return SeqResult(work.slot, work.seq_id, slot.computed)
        start, end = slot.computed, slot.computed + work.n_tokens
        if start > work.start or end > len(slot.history) or (work.outputs in _SAMPLED and end != len(slot.history)):
            raise IntegrityError(f"{work} does not fit its slot: {start} computed, {len(slot.history)} known")
        drafts = self._drafts(work, slot)
        rows = slot.history[start:end] + list(drafts)
        digests = [self._write(slot, token, start + row, draft=row >= work.n_tokens) for row, token in enumerate(rows)]
        slot.computed = end
        if work.outputs is Rows.POOLED:
            return self._pool(slot, work, digests)
        prompt_logprobs = ()
        if work.outputs is Rows.ALL:
            following = zip(digests, slot.history[start + 1 : slot.init.n_prompt], strict=False)
            prompt_logprobs = tuple(self.model.logprobs(digest, token) for digest, token in following)
        if end < len(slot.history):
            return SeqResult(work.slot, work.seq_id, slot.computed, prompt_logprobs=prompt_logprobs)
        if slot.init.n_candidates:
            candidates = self.model.candidates(digests[work.n_tokens - 1], len(slot.history), slot.init)
            return SeqResult(
                work.slot, work.seq_id, slot.computed, prompt_logprobs=prompt_logprobs, candidates=candidates
            )
        return self._verify(slot, work, drafts, digests[work.n_tokens - 1 :], prompt_logprobs)

    def _drafts(self, work: SeqWork, slot: _Slot) -> tuple[int, ...]:
        """Those of the host, or what the worker's own drafter comes up with: anything, and not always as many."""
        if FROM_DRAFTER not in work.draft_tokens:
            return work.draft_tokens
        seed = mix(work.seq_id, len(slot.history))
        return tuple(mix(seed, i) % self.model.vocab_size for i in range(seed % (len(work.draft_tokens) + 1)))

    def _pool(self, slot: _Slot, work: SeqWork, digests: list[int]) -> SeqResult:
        """The result is a digest of the digests that are to be pooled: of all, or of the last."""
        pooling = slot.init.pooling
        if pooling is None:
            raise IntegrityError(f"{work} pools a sequence that is to be continued")
        slot.pooled = self.model.pool(slot.pooled, digests, pooling)
        if slot.computed < len(slot.history):
            return SeqResult(work.slot, work.seq_id, slot.computed)
        slot.stopped = True
        pooled = Pooled(2, slot.pooled.to_bytes(8, sys.byteorder))
        return SeqResult(work.slot, work.seq_id, slot.computed, finish=FinishReason.STOP, pooled=pooled)

    def _write(self, slot: _Slot, token: int, position: int, *, draft: bool) -> int:
        def read(group: int, first: int, end: int) -> int:
            if isinstance(self.model.specs[group], RecurrentState):
                return self._read_state(slot, group, end)
            total = 0
            for number in range(first // BLOCK_TOKENS, -(-end // BLOCK_TOKENS)):
                begin = number * BLOCK_TOKENS
                digests = self._store[group][slot.block(group, begin)]
                total += (number + 1) * sum(digests[max(first - begin, 0) : end - begin])
            return total & _MASK

        digest = self.model.digest(token, position, read)
        slot.drafted[position] = digest
        for group, (spec, store) in enumerate(zip(self.model.specs, self._store, strict=True)):
            if not isinstance(spec, RecurrentState):
                store[slot.block(group, position)][position % BLOCK_TOKENS] = digest
        if not draft:
            self._commit_state(slot, position)
        return digest

    def _read_state(self, slot: _Slot, group: int, length: int) -> int:
        """What the row at ``length`` reads: the state after as many tokens, times its block's number + 1."""
        if length == 0:
            return 0
        last = length - 1
        if last in slot.drafted:
            digest = slot.drafted[last]
        else:
            digest, after = self._store[group][slot.block(group, last)][:2]
            if after != length:
                raise IntegrityError(f"the state after {length} tokens is asked of one after {after}")
        return (last // BLOCK_TOKENS + 1) * digest & _MASK

    def _commit_state(self, slot: _Slot, position: int) -> None:
        """The row at ``position`` counts: states move on."""
        digest = slot.drafted.pop(position)
        for group, (spec, store) in enumerate(zip(self.model.specs, self._store, strict=True)):
            if isinstance(spec, RecurrentState):
                store[slot.block(group, position)][:2] = digest, position + 1

    def _verify(
        self, slot: _Slot, work: SeqWork, drafts: tuple[int, ...], digests: list[int], prompt_logprobs: tuple
    ) -> SeqResult:
        """Draws after the last known token and after each draft, as long as the drafts are what is drawn."""
        init, tokens, logprobs, n_accepted = slot.init, [], [], 0
        finish, stop_reason = None, None
        for digest, draft in zip(digests, (*drafts, None), strict=True):
            token = self.model.draw(digest, len(slot.history), init)
            tokens.append(token)
            slot.history.append(token)
            if init.sampling.logprobs is not None:
                logprobs.append(self.model.logprobs(digest, token))
            if token in init.stop_ids:
                finish, stop_reason = FinishReason.STOP, None if token in init.eos_ids else token
            elif len(slot.history) == init.max_length:
                finish = FinishReason.LENGTH
            slot.stopped = finish is not None
            if slot.stopped or token != draft:
                break
            n_accepted += 1
            self._commit_state(slot, slot.computed)
            slot.computed += 1
        slot.drafted.clear()
        return SeqResult(
            work.slot,
            work.seq_id,
            slot.computed,
            tuple(tokens),
            len(drafts),
            n_accepted,
            tuple(logprobs),
            prompt_logprobs,
            finish,
            stop_reason,
        )
