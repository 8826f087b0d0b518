"""A draft head that reads the target's hidden states: it runs behind the target in every step, and on from there.

Its keys and values lie at the positions of the tokens whose states it has read, mostly in the blocks that the target's
lie in (``head_keys``), so that a prefix hit, a fork or a preemption serves both:

    position       ... t                         C - 1            C        C + 1
    behind a step      state t, token t + 1      state, token C
    drafting                                     gives d1         x, d1    x, d2        gives d2, d3

C + 1 tokens are known, C of them computed by the target; x is what the head made of the row before. What it wrote for
rejected drafts is written over behind the step that rejects them. The key of a block's last token has seen the token
after it: with a prefix hit that is another text's, which may cost a draft, and never changes an output.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from headrace.core.plan import FROM_DRAFTER, SeqResult, SeqWork, SlotInit
from headrace.models.taps import Taps
from headrace.sampling import NO_TOKEN

from .gather import ResolvedWork
from .head_rows import HeadRows, Pass


class HeadDrafter:
    """See ``drafter.Drafter``.

    Args:
        first, further: of rows that read the target's states, and of rows that read the head's own.
        taps: of the target.
        counter: of the tokens that it drafts.
    """

    def __init__(self, first: Pass, further: Pass, taps: Taps, rows: HeadRows, counter: str) -> None:
        self._first, self._further, self._taps, self._rows, self._counter = first, further, taps, rows, counter
        self._slots = slots = rows.slots
        self._ready = np.zeros(slots.n_slots, bool)
        """The head has read all but the newest token of the slot."""
        self._next_logits = torch.zeros(slots.n_slots, first.head.vocab_size, device=rows.device)
        """[n_slots, draft vocab] fp32: what it makes of the last row that it has read."""
        self._next_states: torch.Tensor | None = None
        """[n_slots, hidden] beside them."""

    def bind(self, init: SlotInit) -> None:
        self._ready[init.slot] = False
        self._rows.bind(init)

    def release(self, slot: int) -> None:
        self._ready[slot] = False
        self._rows.release(slot)

    def observe(self, resolved: Sequence[ResolvedWork], results: Sequence[SeqResult]) -> None:
        """Reads what the target has made of the tokens that stay. A sequence that ends is read as well: its blocks may
        serve another."""
        items = [item for item in resolved if results[item.index].error is None]
        slots = np.array([item.work.slot for item in items], np.int64)
        starts = np.array([item.start for item in items], np.int64)
        # A row is read when the token after it is known.
        counts = np.minimum(self._slots.computed[slots], self._slots.known[slots] - 1) - starts
        which = np.flatnonzero(counts > 0)
        slots, starts, counts = slots[which], starts[which], counts[which]
        self._ready[slots] = False
        fits = self._rows.keys.make_room(slots, starts, starts + counts)
        slots, starts, counts, which = slots[fits], starts[fits], counts[fits], which[fits]
        if not len(slots):
            return
        read = [items[at].rows[:count] for at, count in zip(which.tolist(), counts.tolist(), strict=True)]
        ends = np.cumsum(counts)
        rows = torch.from_numpy(np.concatenate(read))
        states = torch.cat([state[rows] for state in self._taps.states], 1)
        is_end = (starts + counts == self._slots.known[slots] - 1) & ~self._slots.stopped[slots]
        last = ends[is_end] - 1
        logits, own = self._rows.run(self._first, slots, starts, counts, states, last)
        if self._next_states is None:
            self._next_states = own.new_zeros(self._slots.n_slots, own.shape[1])
        at = torch.from_numpy(slots[is_end])
        self._next_logits[at], self._next_states[at] = logits, own[torch.from_numpy(last)]
        self._ready[slots] = is_end
        self._rows.keys.keep(slots, starts + counts)

    def drafts(self, works: Sequence[SeqWork], counters: Counter[str]) -> list[tuple[int, ...]]:
        wanted = np.array([work.draft_tokens.count(FROM_DRAFTER) for work in works], np.int64)
        slots = np.array([work.slot for work in works], np.int64)
        made: list[list[int]] = [[] for _ in works]
        drafting = np.flatnonzero((wanted > 0) & self._ready[slots]) if len(works) else np.zeros(0, np.int64)
        if len(drafting):
            logits, states = self.made(slots[drafting])
        length = 0
        while len(drafting):
            tokens = self._rows.draw(slots[drafting], logits, length)
            good = np.flatnonzero(tokens != NO_TOKEN)
            for index, token in zip(drafting[good], tokens[good].tolist(), strict=True):
                made[index].append(token)
                self._slots.lay_drafts(works[index].slot, (token,), after=length)
            length += 1
            good = good[wanted[drafting[good]] > length]
            mine = slots[drafting[good]]
            starts = self._slots.known[mine] - 2 + length
            fits = self._rows.keys.make_room(mine, self._slots.known[mine] - 1, starts + 1)
            good, mine, starts = good[fits], mine[fits], starts[fits]
            drafting = drafting[good]
            if len(drafting):
                logits, states = self.go_on(mine, starts, states[torch.from_numpy(good)])
        counters[self._counter] += sum(map(len, made))
        self._rows.keys.count(counters)
        return [tuple(mine) if n else work.draft_tokens for work, n, mine in zip(works, wanted, made, strict=True)]

    # For trees.

    def is_ready(self, slot: int) -> bool:
        """Whether it has read all but the newest token of a slot."""
        return bool(self._ready[slot])

    def made(self, slots: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """What it makes of the last rows that it has read of ready slots: logits over its vocabulary, and states."""
        at = torch.from_numpy(slots)
        return self._next_logits[at], self._next_states[at]  # type: ignore[index]

    def go_on(self, slots: np.ndarray, starts: np.ndarray, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same after one more row of each slot or lane, at ``starts``, each beside the token after it: ``states``
        are its own of the rows before. Good until it runs again."""
        return self._rows.run(self._further, slots, starts, np.ones_like(slots), states, np.arange(len(slots)))

    def count(self, n_drafts: int, counters: Counter[str]) -> None:
        """Drafts made with its help."""
        counters[self._counter] += n_drafts
