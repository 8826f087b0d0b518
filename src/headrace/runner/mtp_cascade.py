"""MTP layers one behind another ("vanilla"): each reads what the one before it made, and guesses one token further.

Layer k reads row t when the token at t + 1 + k is known, beside what layer k - 1 made of that row (layer 0: the
target's state). C + 1 tokens are known, C of them computed by the target, and d1, d2 are drafts:

    row       C - 3        C - 2        C - 1
    layer 0   token C - 2  token C - 1  token C    gives d1
    layer 1   token C - 1  token C      d1         gives d2
    layer 2   token C      d1           d2         gives d3

Behind a step layer k reads up to row C - 1 - k; the k rows after that are read while drafting, and written over when
the true tokens are known. What a layer made of the last row that it has read is kept: the next layer is one behind.
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


class MtpCascade:
    """See ``drafter.Drafter``.

    Args:
        passes: one for each layer, in order; ``ahead`` is 1 for the first, 2 for the second, and so on.
        taps: of the target: its state behind the final norm.
        counter: of the tokens that they draft.
    """

    def __init__(self, passes: Sequence[Pass], taps: Taps, rows: HeadRows, counter: str) -> None:
        self._passes, self._taps, self._rows, self._counter = tuple(passes), taps, rows, counter
        n_slots = rows.slots.n_slots
        self._slots = rows.slots
        self._read = np.zeros((len(self._passes), n_slots), np.int64)
        """[n_layers, n_slots]: rows before it are read."""
        self._kept: list[list[torch.Tensor | None]] = [[None] * n_slots for _ in self._passes]
        """By layer and slot: [1, hidden], what it made of the last row that it has read; None: of none yet."""
        self._ready = np.zeros(n_slots, bool)
        self._next_logits = torch.zeros(n_slots, self._passes[0].head.vocab_size, device=rows.device)

    def bind(self, init: SlotInit) -> None:
        self._ready[init.slot] = False
        # Earlier rows were read for whoever computed them; their states are gone.
        self._read[:, init.slot] = init.computed
        for kept in self._kept:
            kept[init.slot] = None
        self._rows.bind(init)

    def release(self, slot: int) -> None:
        self._ready[slot] = False
        for kept in self._kept:
            kept[slot] = None
        self._rows.release(slot)

    def observe(self, resolved: Sequence[ResolvedWork], results: Sequence[SeqResult]) -> None:
        (states,) = self._taps.states
        inputs: dict[int, tuple[int, torch.Tensor]] = {}
        for item in resolved:
            slot = item.work.slot
            n_rows = int(self._slots.computed[slot]) - item.start
            if results[item.index].error is None and n_rows > 0:
                # What is tapped is written over by the next step, and by what runs here.
                inputs[slot] = item.start, states[item.first_row : item.first_row + n_rows].clone()
        for layer in range(len(self._passes)):
            inputs = self._read_known(layer, inputs)
            if not inputs:
                return

    def _read_known(
        self, layer: int, inputs: dict[int, tuple[int, torch.Tensor]]
    ) -> dict[int, tuple[int, torch.Tensor]]:
        """Runs a layer over the rows whose tokens are known. ``inputs``: by slot, the first row and what is read from
        there on; returns the same for the next layer."""
        parts = []
        for slot, (first, states) in inputs.items():
            start = max(int(self._read[layer, slot]), first)
            end = min(first + len(states), int(self._slots.known[slot]) - 1 - layer)
            if end > start:
                parts.append((slot, start, states[start - first : end - first]))
        if not parts:
            return {}
        slots = np.array([slot for slot, _, _ in parts], np.int64)
        starts = np.array([start for _, start, _ in parts], np.int64)
        counts = np.array([len(states) for _, _, states in parts], np.int64)
        ends = np.cumsum(counts)
        is_end = np.zeros(len(parts), bool)
        if layer == 0:
            is_end = (starts + counts == self._slots.known[slots] - 1) & ~self._slots.stopped[slots]
        every = torch.cat([states for _, _, states in parts])
        logits, own = self._rows.run(self._passes[layer], slots, starts, counts, every, ends[is_end] - 1)
        if layer == 0:
            self._next_logits[torch.from_numpy(slots[is_end])] = logits
            self._ready[slots] = is_end
        own, outputs = own.clone(), {}
        for slot, start, made in zip(slots.tolist(), starts.tolist(), own.split(counts.tolist()), strict=True):
            before = self._kept[layer][slot] if self._read[layer, slot] == start else None
            outputs[slot] = (start, made) if before is None else (start - 1, torch.cat([before, made]))
            self._kept[layer][slot] = made[-1:]
            self._read[layer, slot] = start + len(made)
        return outputs

    def drafts(self, works: Sequence[SeqWork], counters: Counter[str]) -> list[tuple[int, ...]]:
        wanted = np.array([work.draft_tokens.count(FROM_DRAFTER) for work in works], np.int64)
        slots = np.array([work.slot for work in works], np.int64)
        made: list[list[int]] = [[] for _ in works]
        drafting = [i for i in range(len(works)) if wanted[i] and self._ready[slots[i]]]
        logits = self._next_logits[torch.from_numpy(slots[drafting])] if drafting else torch.empty(0)
        # By work: what the layer before made of the rows read while drafting.
        ahead: dict[int, torch.Tensor | None] = dict.fromkeys(drafting)
        for length in range(len(self._passes)):
            if not drafting:
                break
            tokens = self._rows.draw(slots[drafting], logits, length)
            for index, token in zip(drafting, tokens.tolist(), strict=True):
                if token != NO_TOKEN:
                    made[index].append(token)
                    self._slots.lay_drafts(works[index].slot, (token,), after=length)
            drafting = [i for i in drafting if len(made[i]) == length + 1 < wanted[i]]
            drafting = [i for i in drafting if self._has_read(length, int(slots[i]))]
            if drafting:
                logits = self._further(length + 1, drafting, slots, ahead)
        counters[self._counter] += sum(map(len, made))
        return [tuple(mine) if n else work.draft_tokens for work, n, mine in zip(works, wanted, made, strict=True)]

    def _has_read(self, layer: int, slot: int) -> bool:
        """The layer has read all rows whose tokens are known, so that the next one can go on from there. Not so shortly
        after a sequence has begun, or begun again."""
        end = self._slots.known[slot] - 1 - layer
        return bool(end > 0 and self._kept[layer][slot] is not None and self._read[layer, slot] == end)

    def _further(
        self, layer: int, drafting: Sequence[int], slots: np.ndarray, ahead: dict[int, torch.Tensor | None]
    ) -> torch.Tensor:
        """Runs a layer over its last ``layer`` rows, up to the one before the newest token: logits of the draft after
        it. ``ahead`` becomes what it made of those rows."""
        parts = []
        for index in drafting:
            kept, further = self._kept[layer - 1][slots[index]], ahead[index]
            assert kept is not None
            parts.append(kept if further is None else torch.cat([kept, further]))
        mine = slots[list(drafting)]
        counts = np.full(len(mine), layer)
        starts = self._slots.known[mine] - 1 - layer
        last = np.cumsum(counts) - 1
        logits, own = self._rows.run(self._passes[layer], mine, starts, counts, torch.cat(parts), last)
        # A recording writes over them when it runs again.
        ahead.update(zip(drafting, own.clone().split(layer), strict=True))
        return logits
