"""What is done to logits before the draw, in torch.

bias -> penalties -> min tokens -> bad words -> n-grams -> masks        (temperature and filters follow, in the draw)
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from . import edits
from .contract import RowMasks, SampleRows
from .edits import Edits
from .params import Flag, SamplerState


def change_logits(state: SamplerState, rows: SampleRows, which: np.ndarray, logits: Tensor) -> None:
    """Applies the edits of the rows ``which`` to ``logits`` [len(which), V] in place; other rows are not touched."""
    flags = state.flags[rows.slots[which]]
    for flag, find in edits.KINDS:
        at = np.flatnonzero(flags & int(flag))
        if len(at):
            found = find(state, rows, which[at])
            lengths = [len(ids) for ids in found.ids]
            where = torch.from_numpy(np.repeat(at, lengths) * logits.shape[-1] + np.concatenate(found.ids))
            _apply(flag, state, np.repeat(rows.slots[which[at]], lengths), found, logits, where.to(logits.device))
    if rows.masks is not None:
        _apply_masks(rows.masks, which, logits)


def _apply_masks(masks: RowMasks, which: np.ndarray, logits: Tensor) -> None:
    at = np.flatnonzero(masks.index[which] >= 0)
    words = np.ascontiguousarray(masks.words[masks.index[which[at]]]).astype("<u4", copy=False)
    is_allowed = np.unpackbits(words.view(np.uint8), axis=1, count=logits.shape[-1], bitorder="little").astype(bool)
    where = torch.from_numpy(at).to(logits.device)
    logits[where] = logits[where].masked_fill_(torch.from_numpy(~is_allowed).to(logits.device), -torch.inf)


def _apply(flag: Flag, state: SamplerState, slots: np.ndarray, found: Edits, logits: Tensor, where: Tensor) -> None:
    """``where``: int64 [N], the edited values in ``logits`` as one dimension; ``slots`` [N]: whose they are."""
    flat = logits.view(-1)
    match flag:
        case Flag.BIAS:
            flat[where] = flat[where] + _joined(found.values, logits)
        case Flag.PENALTIES:
            flat[where] = _penalised(state, slots, flat[where], _joined(found.values, logits).to(torch.float32))
        case _:
            flat[where] = -torch.inf


def _penalised(state: SamplerState, slots: np.ndarray, x: Tensor, count: Tensor) -> Tensor:
    """For tokens of prompt and output: x / repetition if x > 0, else x * repetition. Then, for tokens of the output:
    x - presence, then x - (frequency * occurrences). One float32 rounding for each operation."""
    repetition, presence, frequency = (
        torch.from_numpy(values[slots]).to(x.device) for values in (state.repetition, state.presence, state.frequency)
    )
    x = torch.where(x > 0, x / repetition, x * repetition)
    x = torch.where(count > 0, x - presence, x)
    return x - frequency * count


def _joined(values: list[np.ndarray], like: Tensor) -> Tensor:
    return torch.from_numpy(np.concatenate(values)).to(like.device)
