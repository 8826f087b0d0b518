"""Grammars of models that think first: they hold from the end of the thinking part on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headrace.core.reasoning import Reasoning, Start

from .contract import Grammar, Matcher
from .vocabulary import Vocabulary


class Thinking:
    """What puts a thinking part before a grammar."""

    def __init__(self, reasoning: Reasoning, vocabulary: Vocabulary) -> None:
        self._reasoning = reasoning
        n_tokens = len(vocabulary.tokens)
        bits = np.zeros(-(-n_tokens // 32) * 32, bool)
        bits[:n_tokens] = True
        bits[list(vocabulary.eos_ids)] = False
        self._free = np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32)
        """The mask of all tokens that do not end a sequence."""
        self._ends = frozenset(vocabulary.eos_ids)

    def before(self, grammar: Grammar, prompt: Sequence[int]) -> Grammar:
        """``grammar`` for the output of this prompt."""
        start = self._reasoning.start(prompt)
        return grammar if start is Start.AFTER else _Grammar(grammar, start, self._reasoning, self._free, self._ends)


class _Grammar:
    """See ``contract.Grammar``."""

    def __init__(
        self, inner: Grammar, start: Start, reasoning: Reasoning, free: np.ndarray, ends: frozenset[int]
    ) -> None:
        self._inner = inner
        self._args = (start, reasoning, free, ends)

    def matcher(self) -> _Matcher:
        return _Matcher(self._inner.matcher(), *self._args)


class _Matcher:
    """See ``contract.Matcher``. An end token may not come in the thinking part: an output that ended by itself is
    whole, so its answer is there."""

    def __init__(
        self, inner: Matcher, start: Start, reasoning: Reasoning, free: np.ndarray, ends: frozenset[int]
    ) -> None:
        self._inner = inner
        self._reasoning = reasoning
        self._free = free
        self._ends = ends
        self._where = start
        self._way: list[tuple[Start, bool]] = []
        """Of each token that was consumed: where it found the output, and whether the grammar took it."""

    def consume(self, token: int) -> bool:
        before = self._where
        in_grammar = before is Start.AFTER or (before is Start.UNDECIDED and token != self._reasoning.begin_id)
        if in_grammar:
            if not self._inner.consume(token):
                return False
            self._where = Start.AFTER
        elif token in self._ends:
            return False
        else:
            self._where = Start.AFTER if token == self._reasoning.end_id else Start.INSIDE
        self._way.append((before, in_grammar))
        return True

    def rollback(self, n_tokens: int) -> None:
        if n_tokens:
            back = self._way[-n_tokens:]
            del self._way[-n_tokens:]
            self._where = back[0][0]
            self._inner.rollback(sum(in_grammar for _, in_grammar in back))

    def fill(self, words: np.ndarray) -> bool:
        if self._where is Start.INSIDE:
            words[:] = self._free
            return False
        may_end = self._inner.fill(words)
        if self._where is Start.UNDECIDED:
            token = self._reasoning.begin_id
            words[token // 32] |= np.uint32(1 << (token % 32))
        return may_end
