"""The sampler in torch: the reference for the definition of a draw, on any device.

raw logits --(steps, on a copy of the rows that need them)--> logits --argmax--> greedy rows
                                                                  \\--scale--> masses --filters--> draw
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..core.plan import SlotInit, TokenLogprobs
from . import logprobs
from .acceptance import AS_DRAWN, Choices, Settling
from .checks import check_logits, check_masks, check_prompt_rows, check_prompt_tokens, problem_of
from .contract import NO_TOKEN, SampleOutcome, SampleRows
from .draw import race
from .edits import top_p_of
from .filters import Filters, keep, min_mass
from .logprobs import Wanted
from .numerics import argmax_lowest, masses
from .params import Flag, SamplerState
from .philox import StreamKeys, noise_of, noise_of_all
from .steps import change_logits

_CHUNK_ELEMENTS = 1 << 18
"""Rows that are looked at token by token go in chunks of about this many logits, so that temporaries stay in cache."""

_CHANGES_LOGITS = int(Flag.of_logits())
_NEEDS_SCALED = int(Flag.DRAW | Flag.PROCESSED_LOGPROBS)


class TorchSampler:
    """See ``contract.Sampler``. ``settling`` has the last word on what rows with drafts give."""

    def __init__(self, n_slots: int, vocab_size: int, settling: Settling = AS_DRAWN) -> None:
        self.state = SamplerState(n_slots, vocab_size)
        self._settling = settling
        self._concerned = np.zeros(0, bool)

    def bind(self, init: SlotInit) -> None:
        self.state.bind(init)

    def release(self, slot: int) -> None:
        self.state.release(slot)

    def sample(self, rows: SampleRows, logits: Tensor, model_logits: Tensor | None = None) -> SampleOutcome:
        check_logits(logits, len(rows), self.state.vocab_size)
        outcome = SampleOutcome(np.full(len(rows), NO_TOKEN, np.int64))
        self._concerned = self._settling.concerns(rows, self.state)
        flags = self.state.flags[rows.slots]
        needs_change = (flags & _CHANGES_LOGITS) != 0
        outcome.n_changed = int(np.count_nonzero(needs_change))
        if rows.masks is not None:
            check_masks(rows.masks, self.state.vocab_size)
            needs_change |= rows.masks.index >= 0
        changed = np.flatnonzero(needs_change)
        if len(changed) < len(rows):
            everything = np.arange(len(rows))
            self._choose(rows, everything, ~needs_change, logits, outcome)
        if len(changed):
            copy = logits[torch.from_numpy(changed).to(logits.device)]
            change_logits(self.state, rows, changed, copy)
            self._choose(rows, changed, np.ones(len(changed), bool), copy, outcome)
        own = logits if model_logits is None else model_logits
        self._raw_logprobs(rows, np.flatnonzero(flags & int(Flag.RAW_LOGPROBS)), own, outcome)
        return outcome

    def prompt_logprobs(self, logits: Tensor, next_tokens: np.ndarray, n_top: int) -> list[TokenLogprobs]:
        check_logits(logits, len(next_tokens), self.state.vocab_size)
        check_prompt_tokens(next_tokens, self.state.vocab_size)
        entries: list[TokenLogprobs] = []
        for part in self._chunks(np.arange(len(next_tokens))):
            chunk = logits[part[0] : part[-1] + 1]
            check_prompt_rows(chunk.amax(-1).tolist())
            entries += logprobs.of_logits(chunk, Wanted(next_tokens[part], np.full(len(part), n_top)))
        return entries

    def _chunks(self, which: np.ndarray) -> Iterator[np.ndarray]:
        size = max(1, _CHUNK_ELEMENTS // self.state.vocab_size)
        for start in range(0, len(which), size):
            yield which[start : start + size]

    def _choose(
        self, rows: SampleRows, which: np.ndarray, is_mine: np.ndarray, logits: Tensor, outcome: SampleOutcome
    ) -> None:
        """Fills in the tokens of the rows ``which[is_mine]``; ``logits`` [len(which), V] are final."""
        best = argmax_lowest(logits)[:, None]
        top = logits.gather(-1, best)
        tops = top.squeeze(-1).cpu().numpy()
        is_good = is_mine & np.isfinite(tops)
        for i in np.flatnonzero(is_mine & ~np.isfinite(tops)).tolist():
            position = rows.positions[which[i]]
            outcome.errors[int(which[i])] = f"position {position}: {problem_of(float(tops[i]))}"
        good = np.flatnonzero(is_good)
        outcome.tokens[which[good]] = best.squeeze(-1).cpu().numpy()[good]
        flags = self.state.flags[rows.slots[which[good]]]
        needs_scaled = ((flags & _NEEDS_SCALED) != 0) | self._concerned[which[good]]
        # Rows that are looked at in order and rows that are looked at whole go apart: the work is different.
        for order in (0, int(Flag.ORDER)):
            alike = good[needs_scaled & ((flags & int(Flag.ORDER)) == order)]
            for at in self._chunks(alike):
                where = torch.from_numpy(at).to(logits.device)
                scaled = logits[where].sub_(top[where])
                scaled.div_(self._column(self.state.temperature, rows.slots[which[at]], logits))
                finish = self._finish_ordered if order else self._finish_whole
                finish(rows, which[at], scaled, outcome)

    def _finish_whole(self, rows: SampleRows, which: np.ndarray, scaled: Tensor, outcome: SampleOutcome) -> None:
        """Draws over the whole vocabulary; greedy rows have come for their logprobs."""
        slots = rows.slots[which]
        flags = self.state.flags[slots]
        mass = masses(scaled)
        if np.any(flags & int(Flag.MIN_P)):
            is_kept = mass >= min_mass(self._column(self.state.min_p, slots, scaled))
            mass = torch.where(is_kept, mass, 0)
            scaled = torch.where(is_kept, scaled, -torch.inf)
        drawn = np.flatnonzero(flags & int(Flag.DRAW))
        if len(drawn):
            keys = self._keys(rows, which[drawn], scaled)
            noise = noise_of_all(keys, self.state.vocab_size)
            outcome.tokens[which[drawn]] = race(mass[torch.from_numpy(drawn).to(mass.device)], noise).cpu().numpy()
        self._settle(rows, which, mass, None, outcome)
        wanting = np.flatnonzero(flags & int(Flag.PROCESSED_LOGPROBS))
        if len(wanting):
            wanted = self._wanted(rows, which[wanting], outcome)
            entries = logprobs.of_logits(scaled[torch.from_numpy(wanting).to(scaled.device)], wanted)
            outcome.logprobs.update(zip(which[wanting].tolist(), entries, strict=True))

    def _finish_ordered(self, rows: SampleRows, which: np.ndarray, scaled: Tensor, outcome: SampleOutcome) -> None:
        """Draws among the tokens that top-k and top-p keep."""
        slots = rows.slots[which]
        top_k, min_p = (self._column(values, slots, scaled) for values in (self.state.top_k, self.state.min_p))
        top_p = torch.from_numpy(top_p_of(self.state, rows)[which])[:, None].to(scaled.device)
        kept = keep(scaled, Filters(top_k, top_p, min_p))
        noise = noise_of(self._keys(rows, which, scaled), kept.ids)
        outcome.tokens[which] = race(kept.mass, noise, kept.ids).cpu().numpy()
        self._settle(rows, which, kept.mass, kept.ids, outcome)
        wanting = np.flatnonzero(self.state.flags[slots] & int(Flag.PROCESSED_LOGPROBS))
        if len(wanting):
            where = torch.from_numpy(wanting).to(scaled.device)
            entries = logprobs.of_kept(kept.rows(where), self._wanted(rows, which[wanting], outcome))
            outcome.logprobs.update(zip(which[wanting].tolist(), entries, strict=True))

    def _settle(
        self, rows: SampleRows, which: np.ndarray, mass: Tensor, ids: Tensor | None, outcome: SampleOutcome
    ) -> None:
        """``mass``: [len(which), N], of the tokens ``ids`` or of all."""
        mine = np.flatnonzero(self._concerned[which])
        if not len(mine):
            return
        at, concerned = torch.from_numpy(mine).to(mass.device), which[mine]
        own = mass[at]
        if ids is not None:
            own = own.new_zeros(len(mine), self.state.vocab_size).scatter_(1, ids[at], own)
        draws = (self.state.flags[rows.slots[concerned]] & int(Flag.DRAW)) != 0
        choices = Choices(concerned, own, self._keys(rows, concerned, mass), draws)
        outcome.tokens[concerned] = self._settling.settle(rows, choices, outcome.tokens[concerned])

    def _raw_logprobs(self, rows: SampleRows, which: np.ndarray, logits: Tensor, outcome: SampleOutcome) -> None:
        """Logprobs of the model's own logits."""
        for part in self._chunks(which):
            chunk = logits[torch.from_numpy(part).to(logits.device)]
            problems = [problem_of(top) for top in chunk.amax(-1).tolist()]
            for row, problem in zip(part.tolist(), problems, strict=True):
                if problem and row not in outcome.errors:  # what no step has let through to the draw
                    outcome.errors[row] = f"position {rows.positions[row]}: {problem}"
                    outcome.tokens[row] = NO_TOKEN
            good = np.array([i for i, row in enumerate(part.tolist()) if row not in outcome.errors], np.int64)
            if len(good):
                wanted = self._wanted(rows, part[good], outcome)
                entries = logprobs.of_logits(chunk[torch.from_numpy(good).to(logits.device)], wanted)
                outcome.logprobs.update(zip(part[good].tolist(), entries, strict=True))

    def _wanted(self, rows: SampleRows, which: np.ndarray, outcome: SampleOutcome) -> Wanted:
        return Wanted(outcome.tokens[which], self.state.n_logprobs[rows.slots[which]])

    def _keys(self, rows: SampleRows, which: np.ndarray, like: Tensor) -> StreamKeys:
        slots = rows.slots[which]
        return StreamKeys(
            self._column(self.state.seed_low, slots, like),
            self._column(self.state.seed_high, slots, like),
            torch.from_numpy(rows.positions[which].astype(np.int64))[:, None].to(like.device),
            self._column(self.state.output_index, slots, like),
        )

    @staticmethod
    def _column(values: np.ndarray, slots: np.ndarray, like: Tensor) -> Tensor:
        """The values of ``slots`` as a column [R, 1] where ``like`` is."""
        return torch.from_numpy(values[slots])[:, None].to(like.device)
