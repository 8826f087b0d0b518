"""Two samplers over the same options: one for sequences whose drafts may be kept otherwise, one for all others."""

from __future__ import annotations

import numpy as np
from torch import Tensor, from_numpy

from ..core.plan import SlotInit, TokenLogprobs
from .acceptance import Acceptance
from .contract import NO_TOKEN, RowMasks, SampleOutcome, Sampler, SampleRows
from .sampler import TorchSampler


class SplitSampler:
    """Sequences with drafts that ``acceptance`` has a say in go through torch's sampler, all others through ``plain``.
    Both draw the same bits."""

    def __init__(self, plain: Sampler, n_slots: int, vocab_size: int, acceptance: Acceptance) -> None:
        self._plain = plain
        self._acceptance = acceptance
        self._settling = TorchSampler(n_slots, vocab_size, acceptance)

    def bind(self, init: SlotInit) -> None:
        self._plain.bind(init)
        self._settling.bind(init)

    def release(self, slot: int) -> None:
        self._plain.release(slot)
        self._settling.release(slot)

    def prompt_logprobs(self, logits: Tensor, next_tokens: np.ndarray, n_top: int) -> list[TokenLogprobs]:
        return self._plain.prompt_logprobs(logits, next_tokens, n_top)

    def sample(self, rows: SampleRows, logits: Tensor, model_logits: Tensor | None = None) -> SampleOutcome:
        concerned = self._acceptance.concerns(rows, self._settling.state)
        sequences = rows.sequence_of(np.arange(len(rows)))
        is_split = np.zeros(len(rows.first_rows), bool)
        is_split[sequences[concerned]] = True
        outcome = SampleOutcome(np.full(len(rows), NO_TOKEN, np.int64))
        for sampler, mine in ((self._plain, ~is_split), (self._settling, is_split)):
            which = np.flatnonzero(mine[sequences]) if len(rows) else np.zeros(0, np.int64)
            if len(which):
                at = from_numpy(which)
                own = None if model_logits is None else model_logits[at]
                _merge(outcome, sampler.sample(_part(rows, which, mine), logits[at], own), which)
        self._acceptance.board.clear()
        return outcome


def _part(rows: SampleRows, which: np.ndarray, mine: np.ndarray) -> SampleRows:
    """The rows ``which``, of the sequences ``mine``."""
    drafts = [one for one, is_mine in zip(rows.drafts, mine, strict=True) if is_mine]
    masks = rows.masks and RowMasks(rows.masks.index[which], rows.masks.words)
    first_rows = np.searchsorted(which, rows.first_rows[mine])
    skipped = None if rows.skipped is None else rows.skipped[mine]
    return SampleRows(rows.slots[which], rows.positions[which], first_rows, drafts, rows.history, masks, skipped)


def _merge(outcome: SampleOutcome, part: SampleOutcome, which: np.ndarray) -> None:
    """Puts the outcome of the rows ``which`` where it belongs."""
    outcome.tokens[which] = part.tokens
    outcome.errors |= {int(which[row]): error for row, error in part.errors.items()}
    outcome.logprobs |= {int(which[row]): entry for row, entry in part.logprobs.items()}
    outcome.n_changed += part.n_changed
