"""What a backend of guided decoding promises: a compiler, grammars that it compiles, and a matcher for each output."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from headrace.core.guided_params import GuidedDecodingParams


class Matcher(Protocol):
    """Where one output stands in its grammar. Used by one thread at a time.

    What follows from the user's grammar and cannot go on (a limit of the backend) is a ``RequestError``.
    """

    def consume(self, token: int) -> bool:
        """Takes in the next token; False, and nothing has changed, if the grammar does not allow it."""
        ...

    def rollback(self, n_tokens: int) -> None:
        """Takes back the last tokens that were consumed."""
        ...

    def fill(self, words: np.ndarray) -> bool:
        """Writes the tokens that may come next, without those that end a sequence; True if the output may end here.

        ``words``: uint32 [ceil(V / 32)]; bit t % 32 of word t // 32 is token t.
        """
        ...


class Grammar(Protocol):
    """Compiled; shared by the outputs of a request."""

    def matcher(self) -> Matcher:
        """One that stands at the start."""
        ...


class Compiler(Protocol):
    """Safe to use from several threads."""

    def compile(self, params: GuidedDecodingParams) -> Grammar:
        """Raises ``RequestError`` if the text is wrong, too complex, or asks for what the backend does not enforce."""
        ...
