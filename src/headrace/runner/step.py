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
from .media import Media
from .pooling import Poolers
from .prompt_rows import NO_ROWS, PromptRowMaker, PromptRows
from .saving import Saver
from .slots import SlotTable
from .states import States
from .tiers import BlockMover


@dataclass(frozen=True, slots=True)
class Sampled:
    """What the sampled rows of a step gave."""

    outcome: SampleOutcome
    first_rows: dict[int, int]
    """By position in the plan: the first row of the outcome."""
    candidates: dict[int, tuple[Candidate, ...] | RequestError]
    """By position in the plan, for beams."""
    logits: torch.Tensor
    """Float32 [R, V], the model's own."""

    def kept(self, init: SlotInit, first: int, count: int) -> np.ndarray | None:
        """Rows of logits, if the request asks for them: a copy, as a recording writes over them in the next step."""
        if not init.sampling.return_generation_logits:
            return None
        return self.logits[first : first + count].numpy().copy()


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
        self._bind_errors: dict[int, str] = {}

    def execute(self, plan: StepPlan) -> StepResult:
        """Runs the plan; results come in the order of its works. Call it under ``torch.inference_mode()``."""
        started = time.perf_counter()
        counters: Counter[str] = Counter()
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
        resolved = resolve(plan.works, self.slots, self.drafter, counters)
        results = [self._idle(work.slot, work.seq_id) for work in plan.works]
        if resolved:
            batch = gather(resolved, self.slots, self._device)
            prompt, sampled = self._compute(resolved, batch, counters)
            for item in resolved:
                results[item.index] = self._settle(item, prompt.get(item.index, NO_ROWS), sampled)
            self.states.advance(batch, [results[item.index].n_accepted for item in resolved])
            self.drafter.observe(resolved, results)
            counters["saved_states"] += self.saver.observe(resolved, results)
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
                return {}, self._sample(resolved, lambda rows: logits, counters)
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
        counts = np.array([1 + len(item.drafts) for item in items], np.int64)
        first_rows = np.cumsum(counts) - counts
        if not items:
            return Sampled(SampleOutcome(np.zeros(0, np.int64)), {}, {}, torch.empty(0))
        within = np.arange(counts.sum()) - np.repeat(first_rows, counts)
        slots = np.array([item.work.slot for item in items], np.int64)
        rows = SampleRows(
            slots=np.repeat(slots, counts),
            positions=np.repeat(self.slots.known[slots], counts) + within,
            first_rows=first_rows,
            drafts=[item.drafts for item in items],
            history=self.slots.known_history,
        )
        hidden_rows = np.repeat([item.last_known_row for item in items], counts) + within
        logits = logits_of(torch.from_numpy(hidden_rows))
        outcome = self.sampler.sample(rows, logits)
        firsts = {item.index: int(first) for item, first in zip(items, first_rows, strict=True)}
        candidates = self._candidates(items, firsts, outcome, logits)
        counters["logprob_rows"] += len(outcome.logprobs) + sum(_has_logprobs(found) for found in candidates.values())
        counters["processed_rows"] += outcome.n_changed
        counters["processor_calls"] += outcome.n_processed
        counters["masked_rows"] += outcome.n_masked
        counters["beam_rows"] += len(candidates)
        counters["logit_rows"] += sum(
            self.slots.init_of(item.work.slot).sampling.return_generation_logits for item in items
        )
        return Sampled(outcome, firsts, candidates, logits)

    def _candidates(
        self, items: Sequence[ResolvedWork], firsts: dict[int, int], outcome: SampleOutcome, logits: torch.Tensor
    ) -> dict[int, tuple[Candidate, ...] | RequestError]:
        """What the beams among ``items`` may go on with; takes their logprobs out of ``outcome``."""
        found: dict[int, tuple[Candidate, ...] | RequestError] = {}
        for item in items:
            init, row = self.slots.init_of(item.work.slot), firsts[item.index]
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
        first = sampled.first_rows.get(item.index)
        if first is None:
            self.slots.computed[slot] = computed
            if work.outputs is Rows.POOLED and computed == self.slots.known[slot]:
                self.slots.stopped[slot] = True
                pooled = self.poolers.finish(self.slots.init_of(slot))
                return SeqResult(slot, work.seq_id, computed, finish=FinishReason.STOP, pooled=pooled)
            return SeqResult(slot, work.seq_id, computed, prompt_logprobs=prompt.logprobs, context_logits=prompt.logits)
        init = self.slots.init_of(slot)
        if init.n_candidates:
            return self._settle_beam(item, prompt, sampled, first)
        drafts = item.drafts
        tokens = outcome.tokens[first : first + len(drafts) + 1].tolist()
        rules = EndRules(init.stop_ids, init.eos_ids, init.max_length)
        verified = verify(tokens, drafts, int(self.slots.known[slot]), rules)
        if verified.failed_row is not None:
            return self._fail(slot, work.seq_id, computed, outcome.errors[first + verified.failed_row])
        self.slots.append(slot, verified.tokens)
        self.slots.computed[slot] = computed + verified.n_accepted
        self.slots.stopped[slot] = verified.finish is not None
        rows = range(first, first + len(verified.tokens))
        return SeqResult(
            slot,
            work.seq_id,
            computed + verified.n_accepted,
            tokens=verified.tokens,
            n_drafts=len(drafts),
            n_accepted=verified.n_accepted,
            logprobs=tuple(outcome.logprobs[row] for row in rows if row in outcome.logprobs),
            prompt_logprobs=prompt.logprobs,
            context_logits=prompt.logits,
            generation_logits=sampled.kept(init, first, len(verified.tokens)),
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


def _has_logprobs(found: tuple[Candidate, ...] | RequestError) -> bool:
    return not isinstance(found, RequestError) and found[0].shown is not None


def _samples_all(item: ResolvedWork) -> bool:
    """A decode, with or without drafts: every one of its rows is sampled."""
    return item.work.n_tokens == 1 and item.work.outputs in (Rows.LAST, Rows.DRAFTS)
