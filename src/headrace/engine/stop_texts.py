"""Stop strings of beams: a beam ends when its text holds one, so they are looked for where beams are compared."""

from __future__ import annotations

import copy

from headrace.core.request import Request
from headrace.tokenizer.detokenizer import Detokenizer
from headrace.tokenizer.stop_strings import StopStringChecker
from headrace.tokenizer.tokenizer import Tokenizer


class BeamText:
    """The text of a beam so far, as ``text.StoppedText`` makes it of an output. It does not change: a token gives
    another one."""

    def __init__(self, request: Request, tokenizer: Tokenizer) -> None:
        sampling = request.sampling
        self._detokenizer = Detokenizer(tokenizer, sampling.skip_special_tokens, sampling.spaces_between_special_tokens)
        self._checker = StopStringChecker(sampling.stop or ())
        self._min_tokens = sampling.min_tokens or 0
        self._n_tokens = 0
        self.is_stopped = False
        """It holds a stop string: the last token has completed it."""

    def after(self, token: int) -> BeamText:
        """The text with another token."""
        text = copy.copy(self)
        text._detokenizer = self._detokenizer.fork()
        text._checker = copy.copy(self._checker)
        text._n_tokens += 1
        fresh = text._detokenizer.push([token])
        if text._n_tokens >= self._min_tokens:
            text.is_stopped = text._checker.push(fresh)[1] is not None
        return text
