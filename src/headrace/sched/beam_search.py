"""Beam search for one request: which continuations live on, which have ended, and when to stop. Pure arithmetic.

A text's score is the sum of its logprobs over its length (tokens of the output, the end token included) to the power of
``length_penalty``. All sums are float64, in the order of the tokens, so they do not depend on how steps were made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from headrace.core.plan import Candidate, FinishReason, TokenLogprobs
from headrace.core.request import Request


class Move(NamedTuple):
    """One beam after a token: which of the beams before it goes on, and with what."""

    source: int
    token: int


@dataclass(frozen=True, slots=True)
class Text:
    """The output of a beam: the one it goes on from, and a token. The first has neither."""

    before: Text | None
    token: int
    shown: TokenLogprobs | None
    cumulative: float
    length: int
    row: Any = None
    """The logits that the token was chosen from, if they were asked for."""
    words: Any = None
    """What it reads as, where stop strings end it: it has ``after(token)`` and ``is_stopped``."""

    def tokens(self) -> tuple[int, ...]:
        return tuple(text.token for text in self._way())

    def logprobs(self) -> tuple[TokenLogprobs, ...]:
        """One entry a token, if they were asked for."""
        return tuple(text.shown for text in self._way() if text.shown is not None)

    def logits(self) -> Any:
        """A row for each token; None if they were not asked for."""
        return [text.row for text in self._way() if text.row is not None] or None

    def _way(self) -> list[Text]:
        way: list[Text] = []
        text = self
        while text.before is not None:
            way.append(text)
            text = text.before
        return way[::-1]


class Ended(NamedTuple):
    """An output that came to its end."""

    text: Text
    score: float
    finish: FinishReason | None
    """None: it was still going on."""
    stop_reason: int | None


class BeamSearch:
    """``advance`` takes the candidates of the living beams, best beam first, until ``done``."""

    def __init__(self, request: Request, max_length: int) -> None:
        """``max_length``: prompt and output together."""
        sampling = request.sampling
        self._widths = sampling.beam_width_array or (sampling.beam_width,)
        self._most_ended = sampling.beam_width
        self._diversity = sampling.beam_search_diversity_rate or 0.0
        self._length_penalty = sampling.length_penalty or 0.0
        self._early_stopping = 1 if sampling.early_stopping is None else sampling.early_stopping
        self._stop_ids, self._eos_ids = request.stop_ids, request.eos_ids
        self._max_tokens = max_length - len(request.prompt_token_ids)
        self._living = [Text(None, -1, None, 0.0, 0, None, request.beam_text)]
        # How many continuations stop strings end is not known beforehand.
        self._spare = len(self._stop_ids) + (0 if request.beam_text is None else sampling.beam_width)
        self._ended: list[Ended] = []
        self.done = False

    @property
    def n_candidates(self) -> int:
        """Of each beam: so many that, if all ends are among them, enough others are left."""
        return max(self._widths) + self._spare

    def advance(self, candidates: Sequence[Sequence[Candidate]]) -> list[Move]:
        """``candidates[b]``: of the living beam b, in falling order. The beams after it, best first."""
        n_tokens = self._living[0].length + 1
        width = self._widths[min(n_tokens, len(self._widths)) - 1]
        pool = [(beam, one) for beam, of_beam in enumerate(candidates) for one in of_beam]
        pool.sort(key=lambda entry: -self._rank(*entry))
        moves: list[Move] = []
        living: list[Text] = []
        for place, (beam, one) in enumerate(pool):
            if place >= width and (len(living) == width or n_tokens >= self._max_tokens):
                break
            text = self._child(beam, one)
            finish = self._finish(text)
            if finish is not None:
                # What ends further down would crowd out what may still become better.
                if place < width:
                    self._end(text, finish)
            elif len(living) < width:
                living.append(text)
                moves.append(Move(beam, one.token))
        self._living = living
        self.done = not living or self._is_settled(n_tokens)
        return moves

    def best(self, n: int) -> list[Ended]:
        """The ``n`` outputs of highest score, or as many as there are. Before the end, those still going on compete."""
        going_on = [] if self.done else [Ended(text, self._score(text), None, None) for text in self._living]
        return sorted(self._ended + going_on, key=lambda ended: -ended.score)[:n]

    def _child(self, beam: int, one: Candidate) -> Text:
        parent = self._living[beam]
        words = None if parent.words is None else parent.words.after(one.token)
        return Text(parent, one.token, one.shown, self._sum(beam, one), parent.length + 1, one.logits, words)

    def _sum(self, beam: int, one: Candidate) -> float:
        return self._living[beam].cumulative + one.logprob

    def _rank(self, beam: int, one: Candidate) -> float:
        """What candidates compete by: a rate above 0 favours the children of lower beams."""
        return self._sum(beam, one) + self._diversity * beam

    def _finish(self, text: Text) -> FinishReason | None:
        if text.token in self._stop_ids or (text.words is not None and text.words.is_stopped):
            return FinishReason.STOP
        return FinishReason.LENGTH if text.length >= self._max_tokens else None

    def _end(self, text: Text, finish: FinishReason) -> None:
        is_stop_id = text.token in self._stop_ids - self._eos_ids
        self._ended.append(Ended(text, self._score(text), finish, text.token if is_stop_id else None))
        self._ended.sort(key=lambda ended: -ended.score)
        del self._ended[self._most_ended :]

    def _score(self, text: Text) -> float:
        return _over_length(text.cumulative, max(1, text.length), self._length_penalty)

    def _is_settled(self, n_tokens: int) -> bool:
        """True if as many have ended as may, and none that goes on is taken to become better than the worst of them."""
        if len(self._ended) < self._most_ended:
            return False
        if self._early_stopping == 1:
            return True
        longest = self._early_stopping != 0 and self._length_penalty > 0.0
        length = self._max_tokens if longest else n_tokens
        best = max(text.cumulative for text in self._living)
        return _over_length(best, length, self._length_penalty) <= self._ended[-1].score


def _over_length(cumulative: float, length: int, penalty: float) -> float:
    return cumulative / float(length) ** penalty
