"""``best_of``: outputs that are kept until all have ended, of which the likeliest come back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from headrace.core.plan import TokenLogprobs

from .results import OutputEvent


@dataclass(slots=True)
class _Kept:
    """One output so far."""

    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    logits: list[Any] = field(default_factory=list)
    last: OutputEvent | None = None

    def add(self, event: OutputEvent) -> None:
        self.text.append(event.text)
        self.token_ids += event.token_ids
        self.logprobs += event.logprobs
        self.prompt_logprobs += event.prompt_logprobs
        self.logits += () if event.generation_logits is None else list(event.generation_logits)
        self.last = event

    @property
    def cumulative(self) -> float:
        total = 0.0
        for entry in self.logprobs:
            total += entry.logprob
        return total


class BestOf:
    """Compares outputs by the sum of their logprobs, ties to the one that was drawn first."""

    def __init__(self, n_drawn: int, n: int, *, shows_logprobs: bool) -> None:
        """``shows_logprobs``: the request asked for them; else they are there for the comparison only."""
        self._kept = [_Kept() for _ in range(n_drawn)]
        self._n_open = n_drawn
        self._n = n
        self._shows_logprobs = shows_logprobs
        self._context: list[Any] = []

    def take(self, event: OutputEvent) -> list[OutputEvent]:
        """The next event of an output: nothing comes of it before the last output ends, or one fails."""
        if event.error is not None:
            return [msgspec.structs.replace(event, index=0)]
        if event.context_logits is not None:
            self._context.append(event.context_logits)
        self._kept[event.index].add(event)
        self._n_open -= event.finish_reason is not None
        return [] if self._n_open else self._best()

    def _best(self) -> list[OutputEvent]:
        best = sorted(self._kept, key=lambda kept: -kept.cumulative)[: self._n]
        context = [OutputEvent(0, context_logits=rows) for rows in self._context]
        return context + [self._whole(index, kept) for index, kept in enumerate(best)]

    def _whole(self, index: int, kept: _Kept) -> OutputEvent:
        assert kept.last is not None
        return msgspec.structs.replace(
            kept.last,
            index=index,
            text="".join(kept.text),
            token_ids=tuple(kept.token_ids),
            logprobs=tuple(kept.logprobs) if self._shows_logprobs else (),
            prompt_logprobs=tuple(kept.prompt_logprobs),
            cumulative_logprob=kept.cumulative,
            context_logits=None,
            generation_logits=kept.logits or None,
        )
