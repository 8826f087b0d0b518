"""What a draft head thinks may follow: the likeliest tokens of a row and the shares that it gives them.

Of a greedy row these are its probabilities. A row that draws gives the token with the largest log p(t) + G(t), G the
Gumbel noise of its seed and position (``draw.py``), which is known here: so the candidates are the tokens with the
largest log q(t) + G(t), q what the head thinks, and their shares the softmax of that, which is the chance of being the
largest if log p is log q and as much Gumbel noise again.

Nothing here changes an output, so that not all of a row is looked at: filters and noise see its front alone.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..core.plan import SlotInit
from .contract import SampleRows
from .edits import top_p_of
from .params import Flag, SamplerState
from .philox import StreamKeys, noise_of
from .steps import change_logits

_FRONT = 256
"""Tokens of a row that may be drawn."""
_CLASSES = 64
_SMALL = 8192
"""Up to so many tokens a row is searched as a whole."""
_CHANGES_LOGITS = int(Flag.of_logits())


class CandidateFinder:
    """Knows the options of all slots.

    Args:
        token_ids: int64 [draft vocab], in the target's vocabulary.
        width: candidates of a row.
    """

    def __init__(self, n_slots: int, vocab_size: int, token_ids: Tensor, width: int) -> None:
        self._state = SamplerState(n_slots, vocab_size)
        self._token_ids = token_ids
        self._width = min(width, len(token_ids))

    def bind(self, init: SlotInit) -> None:
        self._state.bind(init)

    def find(self, rows: SampleRows, logits: Tensor) -> tuple[list[list[int]], list[list[float]]]:
        """For each row the tokens and the logarithms of their shares, the largest first.

        ``logits``: float32 [R, draft vocab]; not changed.
        """
        logits = self._changed(rows, logits)
        slots = rows.slots
        is_drawn = torch.from_numpy((self._state.flags[slots] & int(Flag.DRAW)) != 0)
        draws = bool(is_drawn.any())
        scaled = logits.div(torch.from_numpy(self._state.temperature[slots])[:, None])
        values, columns = _front(scaled, min(_FRONT if draws else self._width, scaled.shape[1]))
        scores = values - torch.logsumexp(scaled, -1, keepdim=True)
        if draws:
            noised = self._noised(rows, scores, self._token_ids[columns])
            scores = torch.where(is_drawn[:, None], torch.log_softmax(noised, -1), scores)
        scores, places = scores.topk(self._width, -1)
        tokens = self._token_ids[columns.gather(1, places)].tolist()
        found = [[score for score in row if score > -torch.inf] for row in scores.tolist()]
        return [ids[: len(row)] for ids, row in zip(tokens, found, strict=True)], found

    def _changed(self, rows: SampleRows, logits: Tensor) -> Tensor:
        which = np.flatnonzero(self._state.flags[rows.slots] & _CHANGES_LOGITS)
        if not len(which):
            return logits
        at = torch.from_numpy(which)
        wide = logits.new_full((len(which), self._state.vocab_size), -torch.inf)
        wide[:, self._token_ids] = logits[at]
        change_logits(self._state, rows, which, wide)
        return logits.index_copy(0, at, wide[:, self._token_ids])

    def _noised(self, rows: SampleRows, scores: Tensor, ids: Tensor) -> Tensor:
        """Log probabilities [R, N], the largest first, filtered and with the noise of ``ids``."""
        state, slots = self._state, rows.slots
        top_k, min_p = (torch.from_numpy(column[slots])[:, None] for column in (state.top_k, state.min_p))
        top_p = torch.from_numpy(top_p_of(state, rows))[:, None]
        shares = scores.double().exp()
        is_kept = (torch.arange(ids.shape[1]) < top_k) & (shares >= min_p * shares[:, :1])
        within = torch.where(top_k < state.vocab_size, (shares * is_kept).sum(-1, keepdim=True), 1.0)
        is_kept &= shares.cumsum(-1) - shares < within * top_p
        words = noise_of(self._keys(rows), ids)
        wait = -torch.log((2 * words + 1).double() * 2.0**-33)
        return torch.where(is_kept, scores.double() - torch.log(wait), -torch.inf).float()

    def _keys(self, rows: SampleRows) -> StreamKeys:
        state, slots = self._state, rows.slots
        columns = (
            state.seed_low[slots],
            state.seed_high[slots],
            rows.positions.astype(np.int64),
            state.output_index[slots],
        )
        return StreamKeys(*(torch.from_numpy(column)[:, None] for column in columns))


def _front(scores: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """About the ``length`` largest of each row of [R, V] and where they are, the largest first.

    Of a long row only those classes of columns are looked at whose largest is large, so that the first 32 are exact.
    """
    n_rows, n_columns = scores.shape
    if n_columns <= _SMALL:
        return scores.topk(length, -1)
    across = -(-n_columns // _CLASSES)
    padded = scores.new_full((n_rows, _CLASSES * across), -torch.inf)
    padded[:, :n_columns] = scores
    lines = padded.view(n_rows, _CLASSES, across)
    classes = lines.amax(1).topk(min(across, max(min(length, 32), length // 8)), -1).indices
    found = lines.gather(2, classes[:, None, :].expand(-1, _CLASSES, -1)).flatten(1)
    columns = (torch.arange(_CLASSES)[None, :, None] * across + classes[:, None, :]).flatten(1)
    values, places = found.topk(min(length, found.shape[1]), -1)
    return values, columns.gather(1, places)
