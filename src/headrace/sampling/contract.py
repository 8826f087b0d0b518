"""What a sampler promises, whichever implementation it is, and what goes in and comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from ..core.plan import SlotInit, TokenLogprobs

if TYPE_CHECKING:
    from torch import Tensor

NO_TOKEN = -1
"""Stands where a row has no token because it failed. It equals no draft, so a verifier stops there."""


class RowMasks(NamedTuple):
    """The tokens that rows may give."""

    index: np.ndarray
    """int64 [R]: which of ``words`` is the mask of a row; -1: none, every token may come."""
    words: np.ndarray
    """uint32 [M, ceil(V / 32)]: bit t % 32 of word t // 32 says that token t is allowed."""


@dataclass(frozen=True, slots=True)
class SampleRows:
    """The rows of a step that are sampled: for each sequence its last known row, then one for each of its drafts.

    Row ``first_rows[s] + i`` of sequence s draws the token that follows the history + ``drafts[s][:skipped[s] + i]``.
    A branch of a draft tree is a sequence of its own, with the slot of the others.
    """

    slots: np.ndarray
    """int [R]: the slot of each row."""
    positions: np.ndarray
    """int [R]: absolute position of the token that is drawn; for the first row of a sequence its history's length and
    what it skips."""
    first_rows: np.ndarray
    """int [S], rising: the first row of each sequence; its last is the one before the next sequence's first."""
    drafts: Sequence[tuple[int, ...]]
    """[S]: the drafts of each sequence, one fewer than it has rows and skips."""
    history: Callable[[int], np.ndarray]
    """The confirmed tokens (prompt, then output; int [n]) of a slot. Asked only where options look at them."""
    masks: RowMasks | None = None
    """None: no row has one."""
    skipped: np.ndarray | None = None
    """int [S]: first rows of each sequence that stand with another of the same slot. None: nobody has any."""

    def __len__(self) -> int:
        return len(self.slots)

    @classmethod
    def one_each(cls, slots: np.ndarray, positions: np.ndarray, history: Callable[[int], np.ndarray]) -> SampleRows:
        """Rows of sequences without drafts."""
        return cls(slots, positions, np.arange(len(slots)), ((),) * len(slots), history)

    def sequence_of(self, rows: np.ndarray) -> np.ndarray:
        """The sequence each of ``rows`` belongs to: int [len(rows)]."""
        return np.searchsorted(self.first_rows, rows, side="right") - 1

    def drafts_before(self, row: int, sequence: int) -> tuple[int, ...]:
        """The drafts that stand between the confirmed history and the token of ``row``."""
        return self.drafts[sequence][: row - int(self.first_rows[sequence]) + self.n_skipped(sequence)]

    def n_skipped(self, sequence: int) -> int:
        """``skipped`` of a sequence."""
        return 0 if self.skipped is None else int(self.skipped[sequence])


@dataclass(slots=True)
class SampleOutcome:
    """What the rows gave."""

    tokens: np.ndarray
    """int64 [R]; ``NO_TOKEN`` in rows that failed."""
    errors: dict[int, str] = field(default_factory=dict)
    """Row to what was wrong with it. Rows do not fail together: each is the matter of one request."""
    n_changed: int = 0
    """Rows whose logits a bias, a penalty or a ban changed before the draw."""
    n_masked: int = 0
    """Rows that guided decoding has given a mask."""
    n_processed: int = 0
    """Rows that a logits processor has seen."""
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    """Row to its logprobs, for the rows whose request asked for them and that did not fail. Rows of beams have them
    always: processed ones, and as many as the beam gives candidates."""


class Sampler(Protocol):
    """Turns logits into tokens and logprobs. ``docs/sampling.md`` defines the result to the last bit, and the result of
    a row depends on its own logits, options, history and position only."""

    def bind(self, init: SlotInit) -> None:
        """The slot now belongs to this sequence. ``RequestError`` for options that do not fit the vocabulary; the slot
        is then released."""
        ...

    def release(self, slot: int) -> None:
        """Lets go of what the slot holds; harmless on a free slot."""
        ...

    def sample(self, rows: SampleRows, logits: Tensor, model_logits: Tensor | None = None) -> SampleOutcome:
        """One token for each row of ``logits`` (float32 [R, V], not changed). Rows fail one by one, by ``errors``.

        ``model_logits``: what raw logprobs are made of, where somebody has changed a copy of them; None: ``logits``.
        """
        ...

    def prompt_logprobs(self, logits: Tensor, next_tokens: np.ndarray, n_top: int) -> list[TokenLogprobs]:
        """Raw logprobs of the tokens that are known to follow (int [R]), and of the ``n_top`` most likely ones, from
        float32 [R, V]. ``RequestError`` if a row cannot be calculated."""
        ...
