"""From tokens to text for one output: decoding, stop strings, and where the output really ends."""

from __future__ import annotations

from typing import Protocol

import msgspec

from headrace.core.outputs import SequenceUpdate
from headrace.core.plan import FinishReason
from headrace.core.request import Request
from headrace.tokenizer.detokenizer import Detokenizer
from headrace.tokenizer.stop_strings import StopStringChecker
from headrace.tokenizer.tokenizer import Tokenizer


class TextStep(msgspec.Struct, frozen=True):
    """What an update amounts to once its text has been looked at."""

    text: str
    n_tokens: int
    """Tokens of the update that belong to the output: fewer than it holds when a stop string ends it."""
    stop: str | None = None
    """The stop string that ended the output."""


class TextStream(Protocol):
    """One output's way from tokens to text."""

    def push(self, update: SequenceUpdate) -> TextStep:
        """The next update, in order. After a step with ``stop`` or an update that finishes, nothing may follow."""
        ...


class NoText:
    """Token ids are all that was asked for."""

    def push(self, update: SequenceUpdate) -> TextStep:
        return TextStep("", len(update.tokens))


class DecodedText:
    """Decodes all that an update brings. For outputs that no text ends."""

    def __init__(self, request: Request, tokenizer: Tokenizer) -> None:
        sampling = request.sampling
        self._detokenizer = Detokenizer(tokenizer, sampling.skip_special_tokens, sampling.spaces_between_special_tokens)
        self._stop_ids = request.stop_ids
        self._show_stop_token = sampling.include_stop_str_in_output

    def push(self, update: SequenceUpdate) -> TextStep:
        text = self._detokenizer.push(self._visible(update))
        if update.finish_reason is not None:
            text += self._detokenizer.flush()
        return TextStep(text, len(update.tokens))

    def _visible(self, update: SequenceUpdate) -> tuple[int, ...]:
        """The tokens whose text shows: not the stop or end token that ended the output."""
        ended_by_token = update.finish_reason is FinishReason.STOP and update.tokens
        if ended_by_token and not self._show_stop_token and update.tokens[-1] in self._stop_ids:
            return update.tokens[:-1]
        return update.tokens


class StoppedText(DecodedText):
    """Decodes token by token, so that a stop string cuts the output at the very token that completes it."""

    def __init__(self, request: Request, tokenizer: Tokenizer) -> None:
        super().__init__(request, tokenizer)
        sampling = request.sampling
        self._checker = StopStringChecker(sampling.stop or (), sampling.include_stop_str_in_output)
        self._min_tokens = sampling.min_tokens or 0
        self._n_tokens = 0

    def push(self, update: SequenceUpdate) -> TextStep:
        pieces = []
        for count, token in enumerate(self._visible(update), 1):
            self._n_tokens += 1
            fresh = self._detokenizer.push([token])
            if self._n_tokens < self._min_tokens:
                pieces.append(fresh)
                continue
            safe, stop = self._checker.push(fresh)
            pieces.append(safe)
            if stop is not None:
                return TextStep("".join(pieces), count, stop)
        if update.finish_reason is not None:
            safe, stop = self._checker.push(self._detokenizer.flush())
            pieces.append(safe)
            if stop is not None:
                return TextStep("".join(pieces), len(update.tokens), stop)
            pieces.append(self._checker.flush())
        return TextStep("".join(pieces), len(update.tokens))
