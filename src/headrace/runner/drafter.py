"""What drafts in the worker: the counterpart of a proposer, for drafts that a model makes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from headrace.core.plan import SeqResult, SeqWork, SlotInit

from .paths import DraftTree

if TYPE_CHECKING:
    from .gather import ResolvedWork


class Drafter(Protocol):
    """Makes the drafts that a plan asks for, at the beginning of the step that checks them.

    The plan gave them rows and blocks, so a drafter may write its own cache at the same positions. As with a proposer,
    a draft changes how many tokens a step yields, never which.
    """

    def bind(self, init: SlotInit) -> None:
        """The slot now belongs to this sequence; the sampler has taken its options."""
        ...

    def release(self, slot: int) -> None:
        """Its sequence has left the slot."""
        ...

    def drafts(self, works: Sequence[SeqWork], counters: Counter[str]) -> Sequence[tuple[int, ...] | DraftTree]:
        """The draft tokens of each work: those that came with it, or made here in place of ``FROM_DRAFTER``. A tree has
        no path longer than that, and ``more_drafts`` rows more at most."""
        ...

    def observe(self, resolved: Sequence[ResolvedWork], results: Sequence[SeqResult]) -> None:
        """The end of the step: its rows in the order of the batch, and what came of them by ``ResolvedWork.index``.
        Blocks and slots are still those of the step."""
        ...


class NoDrafter:
    """The host has made all drafts there are."""

    def observe(self, resolved: Sequence[ResolvedWork], results: Sequence[SeqResult]) -> None:
        pass

    def bind(self, init: SlotInit) -> None:
        pass

    def release(self, slot: int) -> None:
        pass

    def drafts(self, works: Sequence[SeqWork], counters: Counter[str]) -> list[tuple[int, ...]]:
        return [work.draft_tokens for work in works]


NO_DRAFTER = NoDrafter()
