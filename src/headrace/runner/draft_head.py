"""A draft head that reads the target's hidden states: it runs behind the target in every step, and on from there.

Its keys and values lie in the blocks that the target's lie in, at the positions of the tokens whose states it has read,
so that a prefix hit, a fork or a preemption serves both:

    position       ... t                         C - 1            C        C + 1
    behind a step      state t, token t + 1      state, token C
    drafting                                     gives d1         x, d1    x, d2        gives d2, d3

C + 1 tokens are known, C of them computed by the target; x is what the head made of the row before. What it wrote for
rejected drafts is written over behind the step that rejects them. The key of a block's last token has seen the token
after it: with a prefix hit that is another text's, which may cost a draft, and never changes an output.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from headrace.cache.groups import CacheGroup
from headrace.core.plan import FROM_DRAFTER, SeqResult, SeqWork, SlotInit
from headrace.models.taps import Taps
from headrace.ops.batch import Batch
from headrace.ops.table import Ops
from headrace.sampling import NO_TOKEN, Sampler, SampleRows

from .gather import ResolvedWork, gather_rows
from .graph import Graphs
from .slots import SlotTable


class HeadDrafter:
    """See ``drafter.Drafter``.

    Args:
        head: an ``Eagle3Head`` or an ``MtpHead``.
        taps: of the target.
        sampler: its own, over the target's vocabulary; that of the target holds the same options.
        groups: those of the whole cache, in the order of the block tables.
        counter: of the tokens that it drafts.
        graphs: of rows that read the target's states, and of rows that read the head's own.
    """

    def __init__(
        self,
        head: Any,
        taps: Taps,
        sampler: Sampler,
        vocab_size: int,
        ops: Ops,
        groups: Sequence[CacheGroup],
        slots: SlotTable,
        graphs: tuple[Graphs, Graphs],
        device: torch.device,
        counter: str,
    ) -> None:
        self._head, self._taps, self._sampler, self._ops = head, taps, sampler, ops
        self._groups, self._slots, self._device = groups, slots, device
        self._first, self._further = graphs
        self._counter = counter
        self._ready = np.zeros(slots.n_slots, bool)
        """The head has read all but the newest token of the slot."""
        self._next_logits = torch.zeros(slots.n_slots, head.vocab_size, device=device)
        """[n_slots, draft vocab] fp32: what it makes of the last row that it has read."""
        self._next_states: torch.Tensor | None = None
        """[n_slots, hidden] beside them."""
        self._logits = torch.full((slots.n_slots, vocab_size), float("-inf"), device=device)
        """Of drafts, over the target's vocabulary; columns of tokens that cannot be drafted stay as they are."""

    def bind(self, init: SlotInit) -> None:
        self._ready[init.slot] = False
        # Logprobs are the target's to tell.
        quiet = init.sampling.model_copy(update={"logprobs": None, "prompt_logprobs": None})
        self._sampler.bind(dataclasses.replace(init, sampling=quiet))

    def observe(self, resolved: Sequence[ResolvedWork], results: Sequence[SeqResult]) -> None:
        """Reads what the target has made of the tokens that stay. A sequence that ends is read as well: its blocks may
        serve another."""
        items = [item for item in resolved if results[item.index].error is None]
        slots = np.array([item.work.slot for item in items], np.int64)
        starts = np.array([item.start for item in items], np.int64)
        # A row is read when the token after it is known.
        counts = np.minimum(self._slots.computed[slots], self._slots.known[slots] - 1) - starts
        has_rows = counts > 0
        slots, starts, counts = slots[has_rows], starts[has_rows], counts[has_rows]
        if not len(slots):
            return
        first_rows = np.array([item.first_row for item in items], np.int64)[has_rows]
        ends = np.cumsum(counts)
        rows = torch.from_numpy(np.arange(ends[-1]) + np.repeat(first_rows - (ends - counts), counts))
        states = torch.cat([state[rows] for state in self._taps.states], 1)
        is_end = (starts + counts == self._slots.known[slots] - 1) & ~self._slots.stopped[slots]
        logits, own = self._run(self._first, slots, starts, counts, states, ends[is_end] - 1)
        if self._next_states is None:
            self._next_states = own.new_zeros(self._slots.n_slots, own.shape[1])
        at = torch.from_numpy(slots[is_end])
        self._next_logits[at], self._next_states[at] = logits, own
        self._ready[slots] = is_end

    def drafts(self, works: Sequence[SeqWork], counters: Counter[str]) -> list[tuple[int, ...]]:
        wanted = np.array([work.draft_tokens.count(FROM_DRAFTER) for work in works], np.int64)
        slots = np.array([work.slot for work in works], np.int64)
        made: list[list[int]] = [[] for _ in works]
        drafting = np.flatnonzero((wanted > 0) & self._ready[slots]) if len(works) else np.zeros(0, np.int64)
        if len(drafting):
            at = torch.from_numpy(slots[drafting])
            logits, states = self._next_logits[at], self._next_states[at]  # type: ignore[index]
        length = 0
        while len(drafting):
            tokens = self._draw(slots[drafting], logits, length)
            good = np.flatnonzero(tokens != NO_TOKEN)
            for index, token in zip(drafting[good], tokens[good].tolist(), strict=True):
                made[index].append(token)
                self._slots.lay_drafts(works[index].slot, (token,), after=length)
            length += 1
            good = good[wanted[drafting[good]] > length]
            drafting = drafting[good]
            if len(drafting):
                mine = slots[drafting]
                starts = self._slots.known[mine] - 2 + length
                each = np.ones_like(mine)
                logits, states = self._run(
                    self._further, mine, starts, each, states[torch.from_numpy(good)], np.arange(len(mine))
                )
        counters[self._counter] += sum(map(len, made))
        return [tuple(mine) if n else work.draft_tokens for work, n, mine in zip(works, wanted, made, strict=True)]

    def _run(
        self,
        graphs: Graphs,
        slots: np.ndarray,
        starts: np.ndarray,
        counts: np.ndarray,
        states: torch.Tensor,
        wanted: np.ndarray,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs ``counts[i]`` rows of ``slots[i]`` from ``starts[i]`` on, each beside the token after it: logits over
        the draft vocabulary, and the head's own states, of the rows ``wanted``."""
        batch = self._batch(slots, starts, counts, states)
        rows = torch.from_numpy(wanted)
        logits = graphs.logits(batch, Counter())
        if logits is not None:
            return logits[rows], self._head.taps.states[0][rows]
        for index, (group, part) in enumerate(zip(self._groups, batch.groups, strict=True)):
            part.metadata = self._ops.plan(batch, index, group.spec)
        hidden = self._head.forward(batch)
        return self._head.logits(hidden[rows]), self._head.taps.states[0][rows]

    def _batch(self, slots: np.ndarray, starts: np.ndarray, counts: np.ndarray, states: torch.Tensor) -> Batch:
        batch = gather_rows(slots, starts, counts, np.zeros_like(counts), self._slots, self._device)
        following = self._slots.history[np.repeat(slots, counts), batch.positions.numpy() + 1].astype(np.int64)
        return dataclasses.replace(batch, input_ids=torch.from_numpy(following).to(self._device), states=states)

    def _draw(self, slots: np.ndarray, logits: torch.Tensor, length: int) -> np.ndarray:
        """The tokens after ``length`` drafts: int64 [len(slots)], ``NO_TOKEN`` where none could be drawn."""
        wide = self._logits[: len(slots)]
        wide[:, self._head.token_ids] = logits
        known = self._slots.known

        def history(slot: int) -> np.ndarray:
            return self._slots.history[slot, : known[slot] + length]

        return self._sampler.sample(SampleRows.one_each(slots, known[slots] + length, history), wide).tokens
