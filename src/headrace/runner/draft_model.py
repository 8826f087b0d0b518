"""A second, smaller model that drafts: it runs over the same tokens, with layers of its own in the same cache blocks.

Its keys and values lie in the blocks that the target's lie in, so a prefix hit, a fork or a preemption serves both. At
the beginning of a step it catches up with the tokens that are known, then runs on for as many drafts as were asked for:

    position    ... C-1 |  C        C+1   C+2         C: newest token, not computed yet
    draft model  (done) |  token    d1    d2   ->     d1, d2, d3
    target              |  token    d1    d2   d3     the same step, afterwards

What it drew from rejected drafts is written over when it catches up the next time. It draws with the options, the seed
and the noise of the target's sampler, so at any temperature it often draws the very token.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from headrace.cache.groups import CacheGroup
from headrace.cache.specs import RecurrentState
from headrace.core.errors import ConfigError
from headrace.core.plan import FROM_DRAFTER, SeqResult, SeqWork, SlotInit
from headrace.models.base import Model
from headrace.ops.table import Ops
from headrace.sampling import Sampler, SampleRows
from headrace.sampling.contract import NO_TOKEN

from .gather import ResolvedWork, gather_rows
from .graph import Graphs
from .slots import SlotTable


def check_draft_model(draft: Model, target: Model, max_seq_len: int) -> None:
    """Raises ``ConfigError`` unless ``draft`` can run over the tokens of ``target``."""
    if draft.vocab_size != target.vocab_size:
        raise ConfigError(
            f"DraftTargetDecodingConfig.speculative_model has {draft.vocab_size} tokens, the model {target.vocab_size};"
            " a draft model has the same vocabulary"
        )
    if any(isinstance(spec, RecurrentState) for spec in draft.cache_specs()):
        raise ConfigError(
            "DraftTargetDecodingConfig.speculative_model has recurrent layers, whose state cannot go back to before a"
            " rejected draft; a draft model keeps keys and values"
        )
    if not all(spec.of_tokens for spec in draft.cache_specs()):
        raise ConfigError(
            "DraftTargetDecodingConfig.speculative_model reads media through layers of its own; a draft model reads"
            " tokens only"
        )
    if draft.max_positions < max_seq_len:
        raise ConfigError(
            f"DraftTargetDecodingConfig.speculative_model was made for {draft.max_positions} positions;"
            f" set max_seq_len (now {max_seq_len}) to at most that"
        )


class ModelDrafter:
    """See ``drafter.Drafter``. The model's vocabulary is the target's.

    Args:
        sampler: its own; that of the target holds the same options.
        groups: those of the whole cache, in the order of the block tables.
    """

    def __init__(
        self,
        model: Model,
        sampler: Sampler,
        ops: Ops,
        groups: Sequence[CacheGroup],
        slots: SlotTable,
        graphs: Graphs,
        device: torch.device,
    ) -> None:
        self._model = model
        self._sampler = sampler
        self._ops = ops
        self._groups = groups
        self._slots = slots
        self._graphs = graphs
        self._specs = set(model.cache_specs())
        self._device = device
        self._computed = np.zeros(slots.n_slots, np.int64)
        """Tokens whose keys and values this model has written, by slot."""

    def bind(self, init: SlotInit) -> None:
        self._computed[init.slot] = init.computed
        # Logprobs are the target's to tell.
        quiet = init.sampling.model_copy(update={"logprobs": None, "prompt_logprobs": None})
        self._sampler.bind(dataclasses.replace(init, sampling=quiet))

    def release(self, slot: int) -> None:
        self._sampler.release(slot)

    def drafts(self, works: Sequence[SeqWork], counters: Counter[str]) -> list[tuple[int, ...]]:
        if not works:
            return []
        slots = np.array([work.slot for work in works], np.int64)
        truth = self._slots.computed[slots]
        # What was written for drafts that were rejected lies beyond the truth.
        starts = np.minimum(self._computed[slots], truth)
        for index in np.flatnonzero(starts < truth):
            # A block that no later row needs may be somebody else's by now: then the last draft keeps no key here.
            starts[index] = max(starts[index], *(spec.needed_from(int(truth[index])) for spec in self._specs))
        ends = truth + np.array([work.n_tokens for work in works], np.int64)
        wanted = np.array([work.draft_tokens.count(FROM_DRAFTER) for work in works], np.int64)
        made: list[list[int]] = [[] for _ in works]
        drafting = np.flatnonzero(wanted)
        tokens = self._run(slots, starts, ends - starts, drafting, 0)
        self._computed[slots] = ends
        for length in range(1, int(wanted.max()) + 1):
            drafting = drafting[tokens != NO_TOKEN]
            for index, token in zip(drafting, tokens[tokens != NO_TOKEN].tolist(), strict=True):
                made[index].append(token)
                self._slots.lay_drafts(works[index].slot, (token,), after=length - 1)
            drafting = drafting[wanted[drafting] > length]
            if not len(drafting):
                break
            each = np.arange(len(drafting))
            tokens = self._run(slots[drafting], ends[drafting] + length - 1, np.ones_like(drafting), each, length)
            self._computed[slots[drafting]] += 1
        counters["draft_model_tokens"] += sum(map(len, made))
        return [tuple(mine) if n else work.draft_tokens for work, n, mine in zip(works, wanted, made, strict=True)]

    def observe(self, resolved: Sequence[ResolvedWork], results: Sequence[SeqResult]) -> None:
        """It reads tokens only, and catches up when it is asked for drafts."""

    def _run(
        self, slots: np.ndarray, starts: np.ndarray, counts: np.ndarray, drafting: np.ndarray, length: int
    ) -> np.ndarray:
        """Runs ``counts[i]`` rows of ``slots[i]`` from ``starts[i]`` on; the tokens drawn from the last rows of those
        in ``drafting``, which have ``length`` drafts already: int64 [len(drafting)], ``NO_TOKEN`` where none could be.
        """
        batch = gather_rows(slots, starts, counts, np.zeros_like(counts), self._slots, self._device)
        # What stands for media may lie beyond the vocabulary.
        batch.input_ids.clamp_(max=self._model.vocab_size - 1)
        rows = (np.cumsum(counts) - 1)[drafting]
        logits = self._graphs.logits(batch, Counter()) if len(rows) == batch.n_rows else None
        if logits is None:
            for index, (group, part) in enumerate(zip(self._groups, batch.groups, strict=True)):
                part.metadata = self._ops.plan(batch, index, group.spec)
            hidden = self._model.forward(batch)
            if not len(rows):
                return np.zeros(0, np.int64)
            logits = self._model.logits(hidden[torch.from_numpy(rows)])
        mine = slots[drafting]
        positions = self._slots.known[mine] + length

        def history(slot: int) -> np.ndarray:
            return self._slots.history[slot, : self._slots.known[slot] + length]

        return self._sampler.sample(SampleRows.one_each(mine, positions, history), logits).tokens
