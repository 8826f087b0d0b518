"""What is done to logits before the draw, in the order of ``STEPS``.

Each step is a function (state, rows, which, logits, at) that changes ``logits`` in place. ``which`` are the rows of the
batch that asked for the step (never empty) and ``at`` where each of them stands in ``logits``; other rows are not
touched. A step looks at a row's own slot, history and drafts only.

    bias -> penalties -> min tokens -> bad words            (temperature and filters follow, in the draw)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..core.errors import EngineError
from .contract import SampleRows
from .params import Flag, SamplerState

Step = Callable[[SamplerState, SampleRows, np.ndarray, Tensor, np.ndarray], None]


def add_bias(state: SamplerState, rows: SampleRows, which: np.ndarray, logits: Tensor, at: np.ndarray) -> None:
    """x + bias, in float32."""
    tokens = [state.tokens_of(slot) for slot in rows.slots[which].tolist()]
    where = _flat(at, [slot_tokens.bias_ids for slot_tokens in tokens], logits)
    bias = torch.from_numpy(np.concatenate([slot_tokens.bias for slot_tokens in tokens])).to(logits.device)
    flat = logits.view(-1)
    flat[where] = flat[where] + bias


def penalise(state: SamplerState, rows: SampleRows, which: np.ndarray, logits: Tensor, at: np.ndarray) -> None:
    """For tokens of prompt and output: x / repetition if x > 0, else x * repetition. Then, for tokens of the output:
    x - presence, then x - (frequency * occurrences). One float32 rounding for each operation."""
    ids, occurrences = [], []
    histories: dict[int, np.ndarray] = {}
    for row, sequence in zip(which.tolist(), rows.sequence_of(which).tolist(), strict=True):
        slot = int(rows.slots[row])
        if slot not in histories:
            histories[slot] = _history(rows, slot, sequence)
            state.tokens_of(slot).counts.advance(histories[slot])
        row_ids, row_occurrences = state.tokens_of(slot).counts.with_drafts(rows.drafts_before(row, sequence))
        ids.append(row_ids)
        occurrences.append(row_occurrences)
    where = _flat(at, ids, logits)
    slots = np.repeat(rows.slots[which], [len(row_ids) for row_ids in ids])
    count = torch.from_numpy(np.concatenate(occurrences)).to(logits.device, torch.float32)
    repetition, presence, frequency = (
        torch.from_numpy(values[slots]).to(logits.device)
        for values in (state.repetition, state.presence, state.frequency)
    )
    flat = logits.view(-1)
    x = flat[where]
    x = torch.where(x > 0, x / repetition, x * repetition)
    x = torch.where(count > 0, x - presence, x)
    flat[where] = x - frequency * count


def forbid_ends(state: SamplerState, rows: SampleRows, which: np.ndarray, logits: Tensor, at: np.ndarray) -> None:
    """-inf for end ids, while the output is shorter than ``min_tokens``."""
    is_early = rows.positions[which] < state.min_length[rows.slots[which]]
    which, at = which[is_early], at[is_early]
    if len(which):
        _forbid(logits, at, [state.tokens_of(slot).end_ids for slot in rows.slots[which].tolist()])


def forbid_bad_words(state: SamplerState, rows: SampleRows, which: np.ndarray, logits: Tensor, at: np.ndarray) -> None:
    """-inf for bad words of one token, and for the last token of longer ones whose rest ends the history."""
    ids = []
    for row, sequence in zip(which.tolist(), rows.sequence_of(which).tolist(), strict=True):
        slot = int(rows.slots[row])
        tokens = state.tokens_of(slot)
        if tokens.bad_reach == 0:
            ids.append(tokens.bad_ids)
            continue
        history = _history(rows, slot, sequence)
        tail = (*history[max(0, len(history) - tokens.bad_reach) :].tolist(), *rows.drafts_before(row, sequence))
        last = [token for rest, token in tokens.bad_sequences if tail[-len(rest) :] == rest]
        ids.append(np.concatenate([tokens.bad_ids, np.array(last, np.int64)]))
    _forbid(logits, at, ids)


STEPS: tuple[tuple[Flag, Step], ...] = (
    (Flag.BIAS, add_bias),
    (Flag.PENALTIES, penalise),
    (Flag.MIN_TOKENS, forbid_ends),
    (Flag.BAD_WORDS, forbid_bad_words),
)


def change_logits(state: SamplerState, rows: SampleRows, which: np.ndarray, logits: Tensor) -> None:
    """Runs the steps over ``logits`` [len(which), V] in place, each over those of the rows ``which`` that need it."""
    flags = state.flags[rows.slots[which]]
    for flag, step in STEPS:
        at = np.flatnonzero(flags & int(flag))
        if len(at):
            step(state, rows, which[at], logits, at)


def _history(rows: SampleRows, slot: int, sequence: int) -> np.ndarray:
    """The confirmed tokens of a slot, as many as the first row of its sequence says."""
    history = rows.history(slot)
    first = int(rows.first_rows[sequence])
    if len(history) != rows.positions[first]:
        raise EngineError(
            f"slot {slot} has {len(history)} tokens of history, and row {first} draws position {rows.positions[first]}"
        )
    return history


def _flat(at: np.ndarray, ids: list[np.ndarray], logits: Tensor) -> Tensor:
    """Indices into ``logits`` as one dimension: of the tokens ``ids[i]`` in its row ``at[i]``."""
    rows = np.repeat(at, [len(row_ids) for row_ids in ids])
    return torch.from_numpy(rows * logits.shape[-1] + np.concatenate(ids)).to(logits.device)


def _forbid(logits: Tensor, at: np.ndarray, ids: list[np.ndarray]) -> None:
    logits.view(-1)[_flat(at, ids, logits)] = -torch.inf
