"""Which token a row with a draft gives, where a draft may be kept that would not have been drawn.

By default it is the token that is drawn, and a draft is kept if it is that one: drafts change no output. The options
here change outputs, and only they do:

**Rejection sampling** (Leviathan et al., "Fast inference from transformers via speculative decoding", 2023): draft d of
probability q(d) is kept with probability min(1, p(d) / q(d)), else the token is drawn from max(0, p - q). Tokens are
distributed as p says, whatever q is. Where nobody knows q (drafts that no model drew) it is all at d. The noise of both
is apart from that of draws, which the draft was drawn with.

**Relaxed acceptance**, inside a thinking part alone: draft d is kept if it is among the ``topk`` likeliest tokens of
the target (ties to the lower id) and p(d) >= max p - ``delta``; else all is as without it. p is after temperature and
filters; that of a greedy row is at temperature 1.

Probabilities are shares of fixed-point masses, so that nothing depends on an order of additions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from .contract import SampleRows
from .draw import race
from .params import Flag, SamplerState
from .philox import DOMAIN_ACCEPT, DOMAIN_RESIDUAL, StreamKeys, noise_of, noise_of_all

_RESIDUAL_ONE = float(1 << 40)


class Choices(NamedTuple):
    """What some rows draw among."""

    rows: np.ndarray
    """int64 [C]: which rows."""
    mass: Tensor
    """int64 [C, V]; 0 for tokens that cannot be drawn."""
    keys: StreamKeys
    """[C, 1] each."""
    draws: np.ndarray
    """bool [C]; False: a greedy row."""


class Settling(Protocol):
    """Has the last word on the tokens that a ``TorchSampler`` has drawn."""

    def concerns(self, rows: SampleRows, state: SamplerState) -> np.ndarray:
        """bool [R]: the rows that it wants to see."""
        ...

    def settle(self, rows: SampleRows, choices: Choices, drawn: np.ndarray) -> np.ndarray:
        """Their tokens, int64 [C], in place of those that were drawn (or are the likeliest, of greedy rows)."""
        ...


class AsDrawn:
    """Leaves all as it is."""

    def concerns(self, rows: SampleRows, state: SamplerState) -> np.ndarray:
        return np.zeros(len(rows), bool)

    def settle(self, rows: SampleRows, choices: Choices, drawn: np.ndarray) -> np.ndarray:
        return drawn


AS_DRAWN = AsDrawn()

DraftMasses = dict[tuple[int, int], Tensor]
"""By slot and position: what a draft of this step was drawn among, int64 [V]."""


class Remembering:
    """Of a sampler that draws drafts: notes what it drew them among."""

    def __init__(self, board: DraftMasses) -> None:
        self._board = board

    def concerns(self, rows: SampleRows, state: SamplerState) -> np.ndarray:
        return (state.flags[rows.slots] & int(Flag.DRAW)) != 0

    def settle(self, rows: SampleRows, choices: Choices, drawn: np.ndarray) -> np.ndarray:
        places = zip(rows.slots[choices.rows].tolist(), rows.positions[choices.rows].tolist(), strict=True)
        self._board.update(zip(places, choices.mass, strict=True))
        return drawn


@dataclass(frozen=True, slots=True)
class Relaxed:
    """Options of relaxed acceptance."""

    topk: int
    delta: float
    begin: int
    end: int
    """Tokens that begin and end a thinking part."""

    def is_thinking(self, history: np.ndarray, drafts: Sequence[int]) -> bool:
        """Whether the token after them stands in a thinking part that has begun and not ended."""
        tokens = np.concatenate((history, np.array(drafts, np.int64)))
        marks = np.flatnonzero((tokens == self.begin) | (tokens == self.end))
        return len(marks) > 0 and int(tokens[marks[-1]]) == self.begin

    def keeps(self, mass: Tensor, draft: int) -> bool:
        own, total = int(mass[draft]), int(mass.sum())
        before = int((mass > own).sum()) + int((mass[:draft] == own).sum())
        return own > 0 and before < self.topk and own >= int(mass.max()) - self.delta * total


@dataclass(slots=True)
class Acceptance:
    """See the head of this file. ``relaxed=None``: no relaxed acceptance."""

    rejects: bool
    """By rejection sampling."""
    relaxed: Relaxed | None
    board: DraftMasses = field(default_factory=dict)

    def concerns(self, rows: SampleRows, state: SamplerState) -> np.ndarray:
        has_draft = np.zeros(len(rows), bool)
        for first, drafts in zip(rows.first_rows.tolist(), rows.drafts, strict=True):
            has_draft[first : first + len(drafts)] = True
        draws = (state.flags[rows.slots] & int(Flag.DRAW)) != 0
        return has_draft if self.relaxed is not None else has_draft & draws & self.rejects

    def settle(self, rows: SampleRows, choices: Choices, drawn: np.ndarray) -> np.ndarray:
        tokens, undecided, drafts = drawn.copy(), [], []
        for i, (row, sequence) in enumerate(zip(choices.rows, rows.sequence_of(choices.rows), strict=True)):
            before = rows.drafts_before(int(row), int(sequence))
            drafts.append(rows.drafts[sequence][len(before)])
            if self._is_near(rows.history(int(rows.slots[row])), before, choices.mass[i], drafts[i]):
                tokens[i] = drafts[i]
            elif self.rejects and choices.draws[i]:
                undecided.append(i)
        if undecided:
            at = torch.tensor(undecided)
            keys = StreamKeys(*(column[at] for column in choices.keys))
            places = zip(rows.slots[choices.rows].tolist(), rows.positions[choices.rows].tolist(), strict=True)
            q = [self.board.get(place) for place in places]
            wanted = torch.tensor(drafts)[at]
            settled = rejection(choices.mass[at], keys, wanted, [q[i] for i in undecided], torch.from_numpy(tokens)[at])
            tokens[undecided] = settled.numpy()
        return tokens

    def _is_near(self, history: np.ndarray, before: Sequence[int], mass: Tensor, draft: int) -> bool:
        relaxed = self.relaxed
        return relaxed is not None and relaxed.is_thinking(history, before) and relaxed.keeps(mass, draft)


def rejection(
    mass: Tensor, keys: StreamKeys, drafts: Tensor, q_masses: Sequence[Tensor | None], drawn: Tensor
) -> Tensor:
    """int64 [R]: the draft, or a token of what is left of p without q.

    Args:
        mass: int64 [R, V]; its shares are p.
        drafts: int64 [R].
        q_masses: int64 [V] likewise; None: all of q is at the draft.
        drawn: int64 [R], for a row in which p is q but for rounding.
    """
    p = mass.to(torch.float64) / mass.sum(-1, keepdim=True).to(torch.float64)
    q = torch.zeros_like(p).scatter_(1, drafts[:, None], 1.0)
    for row, known in enumerate(q_masses):
        if known is not None:
            q[row] = known.to(torch.float64) / float(known.sum())
    words = noise_of(keys, drafts[:, None], DOMAIN_ACCEPT)
    u = (2 * words + 1).to(torch.float64) * 2.0**-33
    is_kept = (u * q.gather(1, drafts[:, None]) < p.gather(1, drafts[:, None])).squeeze(1)
    left = ((p - q).clamp_min(0.0) * _RESIDUAL_ONE).to(torch.int64)
    tokens = torch.where(is_kept, drafts, drawn)
    again = torch.nonzero(~is_kept & left.any(-1)).squeeze(1)
    if len(again):
        noise = noise_of_all(StreamKeys(*(column[again] for column in keys)), mass.shape[1], DOMAIN_RESIDUAL)
        tokens[again] = race(left[again], noise)
    return tokens
