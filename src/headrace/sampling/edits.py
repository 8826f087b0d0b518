"""What the history of rows says about their draw: which logits change, by what numbers, and the top-p of each row.

Samplers apply edits, each in its own way.

Each function (state, rows, which) looks at the rows ``which``, which asked for that kind of edit, and at nothing of a
row but its own slot, history and drafts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..core.errors import EngineError
from .contract import SampleRows
from .params import Flag, SamplerState

_NOTHING = np.empty(0, np.int64)


class Edits(NamedTuple):
    """Edits of R rows."""

    ids: list[np.ndarray]
    """[R] arrays of token ids, int64."""
    values: list[np.ndarray]
    """[R] arrays of as many numbers, whose meaning is the kind's; an empty list for bans."""


Find = Callable[[SamplerState, SampleRows, np.ndarray], Edits]


def biases(state: SamplerState, rows: SampleRows, which: np.ndarray) -> Edits:
    """Values: float32 to add."""
    tokens = [state.tokens_of(slot) for slot in rows.slots[which].tolist()]
    return Edits([slot_tokens.bias_ids for slot_tokens in tokens], [slot_tokens.bias for slot_tokens in tokens])


def penalties(state: SamplerState, rows: SampleRows, which: np.ndarray) -> Edits:
    """The distinct tokens of history and drafts. Values: int64, how often each is in the output."""
    ids, occurrences = [], []
    histories: dict[int, np.ndarray] = {}
    for row, sequence in zip(which.tolist(), rows.sequence_of(which).tolist(), strict=True):
        slot = int(rows.slots[row])
        if slot not in histories:
            histories[slot] = confirmed(rows, slot, sequence)
            state.tokens_of(slot).counts.advance(histories[slot])
        row_ids, row_occurrences = state.tokens_of(slot).counts.with_drafts(rows.drafts_before(row, sequence))
        ids.append(row_ids)
        occurrences.append(row_occurrences)
    return Edits(ids, occurrences)


def end_bans(state: SamplerState, rows: SampleRows, which: np.ndarray) -> Edits:
    """End ids, while the output is shorter than ``min_tokens``."""
    slots = rows.slots[which]
    is_early = (rows.positions[which] < state.min_length[slots]).tolist()
    ids = [
        state.tokens_of(slot).end_ids if early else _NOTHING
        for slot, early in zip(slots.tolist(), is_early, strict=True)
    ]
    return Edits(ids, [])


def word_bans(state: SamplerState, rows: SampleRows, which: np.ndarray) -> Edits:
    """Bad words of one token, and the last token of longer ones whose rest ends the history."""
    ids = []
    for row, sequence in zip(which.tolist(), rows.sequence_of(which).tolist(), strict=True):
        slot = int(rows.slots[row])
        tokens = state.tokens_of(slot)
        if tokens.bad_reach == 0:
            ids.append(tokens.bad_ids)
            continue
        history = confirmed(rows, slot, sequence)
        tail = (*history[max(0, len(history) - tokens.bad_reach) :].tolist(), *rows.drafts_before(row, sequence))
        last = [token for rest, token in tokens.bad_sequences if tail[-len(rest) :] == rest]
        ids.append(np.concatenate([tokens.bad_ids, np.array(last, np.int64)]))
    return Edits(ids, [])


def ngram_bans(state: SamplerState, rows: SampleRows, which: np.ndarray) -> Edits:
    """What would repeat an n-gram of history and drafts."""
    ids = []
    for row, sequence in zip(which.tolist(), rows.sequence_of(which).tolist(), strict=True):
        slot = int(rows.slots[row])
        history = confirmed(rows, slot, sequence)
        ngrams = state.tokens_of(slot).ngrams
        ngrams.advance(history)
        ids.append(ngrams.banned(history, rows.drafts_before(row, sequence)))
    return Edits(ids, [])


KINDS: tuple[tuple[Flag, Find], ...] = (
    (Flag.BIAS, biases),
    (Flag.PENALTIES, penalties),
    (Flag.MIN_TOKENS, end_bans),
    (Flag.BAD_WORDS, word_bans),
    (Flag.NGRAMS, ngram_bans),
)
"""In the order they are applied in."""


def top_p_of(state: SamplerState, rows: SampleRows) -> np.ndarray:
    """The top-p of each row: float64 [R], in one piece."""
    top_p = state.top_p[rows.slots]
    which = np.flatnonzero(state.flags[rows.slots] & int(Flag.TOP_P_DECAY))
    for row, sequence in zip(which.tolist(), rows.sequence_of(which).tolist(), strict=True):
        slot = int(rows.slots[row])
        decay = state.tokens_of(slot).top_p
        decay.advance(confirmed(rows, slot, sequence))
        top_p[row] = decay.with_drafts(rows.drafts_before(row, sequence))
    return top_p


def confirmed(rows: SampleRows, slot: int, sequence: int) -> np.ndarray:
    """The confirmed tokens of a slot, as many as the first row of its sequence says."""
    history = rows.history(slot)
    first = int(rows.first_rows[sequence])
    if len(history) + rows.n_skipped(sequence) != rows.positions[first]:
        raise EngineError(
            f"slot {slot} has {len(history)} tokens of history, and row {first} draws position {rows.positions[first]}"
        )
    return history
