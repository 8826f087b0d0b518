"""One step: obey a plan, run the model over its rows, sample, verify, and write the slots' new truth."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from headrace.cache.groups import CacheGroup
from headrace.core.errors import RequestError
from headrace.core.plan import Candidate, FinishReason, Rows, SeqResult, SlotInit, StepPlan, StepResult
from headrace.models.base import Model
from headrace.ops.batch import Batch
from headrace.ops.table import Ops
from headrace.sampling import EndRules, SampleOutcome, Sampler, SampleRows, verify

from .adapters import AdapterRows
from .beams import candidates_of
from .drafter import Drafter
from .gather import ResolvedWork, gather, resolve
from .graph import Graphs
from .lanes import Lanes
from .media import Media
from .paths import best_path, path_rows
from .pooling import Poolers
from .prompt_rows import NO_ROWS, PromptRowMaker, PromptRows
from .saving import Saver
from .slots import SlotTable
from .states import States
from .tiers import BlockMover


def do_nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Sampled:
    """What the sampled rows of a step gave."""

    outcome: SampleOutcome
    rows: dict[int, tuple[int, np.ndarray]]
    """By position in the plan: the path that is right for longest (0 but for trees of drafts), and the rows of the
    outcome that belong to it."""
    candidates: dict[int, tuple[Candidate, ...] | RequestError]
    """By position in the plan, for beams."""
    logits: torch.Tensor
    """Float32 [R, V], the model's own."""

    def path_of(self, item: ResolvedWork) -> int:
        """Which path of its drafts is right."""
        return self.rows[item.index][0] if item.branches else 0

    def kept(self, init: SlotInit, rows: np.ndarray) -> np.ndarray | None:
        """Rows of logits, if the request asks for them: a copy, as a recording writes over them in the next step."""
        if not init.sampling.return_generation_logits:
            return None
        return self.logits.numpy()[rows]


class StepRunner:
    """Holds what every step needs; a step's own things live in ``execute``.

    ``views[g]`` is the arena as group g sees it: [n_blocks, n_layers_of_group, ...].
    """

    def __init__(
        self,
        model: Model,
        sampler: Sampler,
        ops: Ops,
        groups: Sequence[CacheGroup],
        views: Sequence[torch.Tensor],
        slots: SlotTable,
        graphs: Graphs,
        poolers: Poolers,
        states: States,
        drafter: Drafter,
        media: Media,
        adapters: AdapterRows,
        mover: BlockMover,
        saver: Saver,
        lanes: Lanes,
    ) -> None:
        self.model = model
        self.sampler = sampler
        self.ops = ops
        self.groups = groups
        self.views = views
        self._device = views[0].device if views else torch.device("cpu")
        self.slots = slots
        self.graphs = graphs
        self.poolers = poolers
        self.states = states
        self.drafter = drafter
        self.media = media
        self.adapters = adapters
        self._rows = PromptRowMaker(model, sampler)
        self.mover = mover
        self.saver = saver
        self.lanes = lanes
        self._bind_errors: dict[int, str] = {}

    def execute(self, plan: StepPlan, before_model: Callable[[], None] = do_nothing) -> StepResult:
        """Runs the plan; results come in the order of its works. Call it under ``torch.inference_mode()``.
        ``before_model`` is called when the model is about to run, or something else that may take long."""
        started = time.perf_counter()
        counters: Counter[str] = Counter()
        if plan.inits or plan.moves or plan.ended:
            before_model()
        self.saver.end(plan.ended)
        self.slots.choose(plan.appends)
        for slot in plan.released:
            self.sampler.release(slot)
            self.drafter.release(slot)
        for init in plan.inits:
            self._bind(init)
        self.slots.update_blocks(plan.block_updates)
        failed_moves = self.mover.make(plan.moves, plan.copies)
        for init in plan.inits:
            self.media.bind(init, counters)
        resolved = resolve(plan.works, self.slots, self.drafter, self.lanes, counters)
        results = [self._idle(work.slot, work.seq_id) for work in plan.works]
        if resolved:
            batch = gather(resolved, self.slots, self.lanes, self._device)
            before_model()
            prompt, sampled = self._compute(resolved, batch, counters)
            for item in resolved:
                results[item.index] = self._settle(item, prompt.get(item.index, NO_ROWS), sampled)
            self.states.advance(batch, _accepted(resolved, results, sampled))
            settled = [item.on(sampled.path_of(item)) for item in resolved]
            self.drafter.observe(settled, results)
            counters["saved_states"] += self.saver.observe(settled, results)
            counters["batched_steps"] += len(resolved) > 1
        return StepResult(plan.step, tuple(results), time.perf_counter() - started, dict(counters), failed_moves)

    def _bind(self, init: SlotInit) -> None:
        self.slots.bind(init)
        self.poolers.bind(init)
        self._bind_errors.pop(init.slot, None)
        try:
            self.sampler.bind(init)
            self.drafter.bind(init)
            self.saver.bind(init)
        except RequestError as error:
            self.slots.stopped[init.slot] = True
            self._bind_errors[init.slot] = str(error)

    def _idle(self, slot: int, seq_id: int) -> SeqResult:
        """For a slot that had stopped before this step, or whose options could not be bound."""
        return SeqResult(slot, seq_id, int(self.slots.computed[slot]), error=self._bind_errors.get(slot))

    def _compute(
        self, resolved: Sequence[ResolvedWork], batch: Batch, counters: Counter[str]
    ) -> tuple[dict[int, PromptRows | RequestError], Sampled]:
        """What prompt rows gave, by position in the plan, and what ``_sample`` returns."""
        self.adapters.select(batch, counters)
        if all(_samples_all(item) for item in resolved):
            logits = self.graphs.logits(batch, counters)
            if logits is not None:
                return {}, self._sample(resolved, lambda rows: _rows_of(logits, rows), counters)
        for index, (group, part) in enumerate(zip(self.groups, batch.groups, strict=True)):
            part.metadata = self.ops.plan(batch, index, group.spec)
        hidden = self.model.forward(batch)
        self._pool(resolved, hidden, counters)
        prompt = self._prompt_rows(resolved, hidden, counters)
        return prompt, self._sample(resolved, lambda rows: self.model.logits(hidden[rows]), counters)

    def _prompt_rows(
        self, resolved: Sequence[ResolvedWork], hidden: torch.Tensor, counters: Counter[str]
    ) -> dict[int, PromptRows | RequestError]:
        """By position in the plan: what the rows of prompts gave that have to give something, or what went wrong."""
        found: dict[int, PromptRows | RequestError] = {}
        for item in resolved:
            if item.work.outputs is not Rows.ALL:
                continue
            slot = item.work.slot
            n_rows = min(item.work.n_tokens, int(self.slots.n_prompt[slot]) - item.start)
            last = min(item.start + n_rows + 1, int(self.slots.n_prompt[slot]))
            following = self.slots.history[slot, item.start + 1 : last].astype(np.int64)
            try:
                found[item.index] = self._rows.of(
                    self.slots.init_of(slot), hidden[item.first_row : item.first_row + n_rows], following, counters
                )
            except RequestError as error:
                found[item.index] = error
        return found

    def _pool(self, resolved: Sequence[ResolvedWork], hidden: torch.Tensor, counters: Counter[str]) -> None:
        """Hands on the rows of sequences that are encoded."""
        for item in resolved:
            if item.work.outputs is Rows.POOLED:
                slot, end = item.work.slot, item.start + item.work.n_tokens
                rows = hidden[item.first_row : item.first_row + item.work.n_tokens]
                self.poolers.add(slot, self.slots.history[slot, item.start : end], rows)
                counters["pooled_rows"] += item.work.n_tokens

    def _samples(self, item: ResolvedWork) -> bool:
        outputs = item.work.outputs
        if outputs is Rows.ALL:
            return item.start + item.work.n_tokens == self.slots.known[item.work.slot]
        return outputs in (Rows.LAST, Rows.DRAFTS)

    def _sample(
        self,
        resolved: Sequence[ResolvedWork],
        logits_of: Callable[[torch.Tensor], torch.Tensor],
        counters: Counter[str],
    ) -> Sampled:
        """``logits_of``: rows of the batch [R] int64, ascending -> [R, vocab_size]."""
        items = [item for item in resolved if self._samples(item)]
        if not items:
            return Sampled(SampleOutcome(np.zeros(0, np.int64)), {}, {}, torch.empty(0))
        rows, batch_rows = self._sample_rows(items)
        logits = logits_of(torch.from_numpy(batch_rows))
        outcome = self.sampler.sample(rows, logits)
        chosen = _choose(items, rows, outcome)
        candidates = self._candidates(items, chosen, outcome, logits)
        counters["logprob_rows"] += len(outcome.logprobs) + sum(_has_logprobs(found) for found in candidates.values())
        counters["processed_rows"] += outcome.n_changed
        counters["processor_calls"] += outcome.n_processed
        counters["masked_rows"] += outcome.n_masked
        counters["beam_rows"] += len(candidates)
        counters["logit_rows"] += sum(
            self.slots.init_of(item.work.slot).sampling.return_generation_logits for item in items
        )
        return Sampled(outcome, chosen, candidates, logits)

    def _sample_rows(self, items: Sequence[ResolvedWork]) -> tuple[SampleRows, np.ndarray]:
        """What is sampled of ``items``, each token of a tree once, and in which rows of the batch: int64 [R]."""
        paths = [path for item in items for path in item.sampled()]
        slots, skipped, from_row = (np.array([path[part] for path in paths], np.int64) for part in range(3))
        drafts = [path[3] for path in paths]
        counts = 1 + np.array([len(own) for own in drafts], np.int64) - skipped
        first_rows = np.cumsum(counts) - counts
        within = np.arange(counts.sum()) - np.repeat(first_rows, counts)
        rows = SampleRows(
            slots=np.repeat(slots, counts),
            positions=np.repeat(self.slots.known[slots] + skipped, counts) + within,
            first_rows=first_rows,
            drafts=drafts,
            history=self.slots.known_history,
            skipped=skipped if skipped.any() else None,
        )
        return rows, np.repeat(from_row, counts) + within

    def _candidates(
        self,
        items: Sequence[ResolvedWork],
        chosen: dict[int, tuple[int, np.ndarray]],
        outcome: SampleOutcome,
        logits: torch.Tensor,
    ) -> dict[int, tuple[Candidate, ...] | RequestError]:
        """What the beams among ``items`` may go on with; takes their logprobs out of ``outcome``."""
        found: dict[int, tuple[Candidate, ...] | RequestError] = {}
        for item in items:
            init, row = self.slots.init_of(item.work.slot), int(chosen[item.index][1][0])
            if init.n_candidates and row in outcome.logprobs:
                found[item.index] = candidates_of(init, outcome.logprobs.pop(row), logits[row], self.sampler)
        return found

    def _settle(
        self,
        item: ResolvedWork,
        prompt: PromptRows | RequestError,
        sampled: Sampled,
    ) -> SeqResult:
        """Verifies the drafts of one sequence, writes its slot, and says what happened."""
        work, slot = item.work, item.work.slot
        computed = item.end
        outcome = sampled.outcome
        if isinstance(prompt, RequestError):
            return self._fail(slot, work.seq_id, computed, str(prompt))
        if item.index not in sampled.rows:
            self.slots.computed[slot] = computed
            if work.outputs is Rows.POOLED and computed == self.slots.known[slot]:
                self.slots.stopped[slot] = True
                pooled = self.poolers.finish(self.slots.init_of(slot))
                return SeqResult(slot, work.seq_id, computed, finish=FinishReason.STOP, pooled=pooled)
            return SeqResult(slot, work.seq_id, computed, prompt_logprobs=prompt.logprobs, context_logits=prompt.logits)
        init = self.slots.init_of(slot)
        path, rows = sampled.rows[item.index]
        if init.n_candidates:
            return self._settle_beam(item, prompt, sampled, int(rows[0]))
        rules = EndRules(init.stop_ids, init.eos_ids, init.max_length)
        verified = verify(outcome.tokens[rows].tolist(), item.paths[path], int(self.slots.known[slot]), rules)
        if verified.failed_row is not None:
            return self._fail(slot, work.seq_id, computed, outcome.errors[int(rows[verified.failed_row])])
        if path:
            self.lanes.copy(item.branches[path - 1].lane, slot, item.start, computed + verified.n_accepted - 1)
        self.slots.append(slot, verified.tokens)
        self.slots.computed[slot] = computed + verified.n_accepted
        self.slots.stopped[slot] = verified.finish is not None
        rows = rows[: len(verified.tokens)]
        return SeqResult(
            slot,
            work.seq_id,
            computed + verified.n_accepted,
            tokens=verified.tokens,
            n_drafts=item.n_drafts,
            n_accepted=verified.n_accepted,
            logprobs=tuple(outcome.logprobs[row] for row in rows.tolist() if row in outcome.logprobs),
            prompt_logprobs=prompt.logprobs,
            context_logits=prompt.logits,
            generation_logits=sampled.kept(init, rows),
            finish=verified.finish,
            stop_reason=verified.stop_reason,
        )

    def _settle_beam(self, item: ResolvedWork, prompt: PromptRows, sampled: Sampled, first: int) -> SeqResult:
        """Its next token is chosen elsewhere, so the slot is left as it is."""
        work, found = item.work, sampled.candidates.get(item.index)
        if found is None or isinstance(found, RequestError):
            message = sampled.outcome.errors[first] if found is None else str(found)
            return self._fail(work.slot, work.seq_id, item.end, message)
        self.slots.computed[work.slot] = item.end
        return SeqResult(
            work.slot,
            work.seq_id,
            item.end,
            prompt_logprobs=prompt.logprobs,
            context_logits=prompt.logits,
            candidates=found,
        )

    def _fail(self, slot: int, seq_id: int, computed: int, message: str) -> SeqResult:
        self.slots.stopped[slot] = True
        self.slots.computed[slot] = computed
        return SeqResult(slot, seq_id, computed, error=message)


def _rows_of(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """``rows`` ascend: as many as there are are all of them."""
    return logits if len(rows) == len(logits) else logits[rows]


def _choose(
    items: Sequence[ResolvedWork], rows: SampleRows, outcome: SampleOutcome
) -> dict[int, tuple[int, np.ndarray]]:
    """By position in the plan, the path that is right for longest, and its rows of the outcome."""
    chosen, at = {}, 0
    for item in items:
        first = int(rows.first_rows[at])
        at += 1 + len(item.branches)
        if not item.branches:
            chosen[item.index] = 0, np.arange(first, first + 1 + len(item.drafts))
            continue
        of_paths = path_rows(first, item.paths, (0, *(1 + branch.shared for branch in item.branches)))
        best = best_path(item.paths, of_paths, outcome.tokens)
        chosen[item.index] = best, of_paths[best]
    return chosen


def _accepted(resolved: Sequence[ResolvedWork], results: Sequence[SeqResult], sampled: Sampled) -> list[int]:
    """How many of the draft rows of each sequence of the batch were right. Of a tree, its known token is one."""
    accepted = []
    for item in resolved:
        n_accepted = results[item.index].n_accepted
        if not item.branches:
            accepted.append(n_accepted)
            continue
        right = sampled.path_of(item)
        accepted += [item.work.n_tokens + n_accepted if path == right else 0 for path in range(len(item.paths))]
    return accepted


def _has_logprobs(found: tuple[Candidate, ...] | RequestError) -> bool:
    return not isinstance(found, RequestError) and found[0].shown is not None


def _samples_all(item: ResolvedWork) -> bool:
    """A decode, with or without drafts: every one of its rows is sampled."""
    return item.work.n_tokens == 1 and item.work.outputs in (Rows.LAST, Rows.DRAFTS)
