"""Drafts by the longest suffix that has occurred before, of any length: a suffix automaton of each sequence.

The automaton (Blumer et al., "The smallest automaton recognizing the subwords of a text", 1985) has a state for each
set of substrings that end at the same places. Its states are few (fewer than two a token) and a token costs a few
dictionary look-ups on average, however long the text. The suffix link of the whole text's state is its longest suffix
that occurs more than once; a draft is what followed it the last time.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..core.errors import ConfigError


class _Automaton:
    """Of one text. State 0 is the empty string; ``_end[s]`` is where the strings of state s ended most lately, as far
    as has been noted: one place at least is."""

    def __init__(self) -> None:
        self.text: list[int] = []
        self._next: list[dict[int, int]] = [{}]
        self._link = [-1]
        self._length = [0]
        self._end = [0]
        self._whole = 0

    def append(self, token: int) -> None:
        self.text.append(token)
        new = self._state({}, len(self.text), len(self.text))
        state = self._whole
        self._whole = new
        while state >= 0 and token not in self._next[state]:
            self._next[state][token] = new
            state = self._link[state]
        self._link[new] = 0 if state < 0 else self._suffix_state(state, token)

    def continuation(self, min_length: int, limit: int) -> tuple[int, ...]:
        """What followed the longest suffix of at least ``min_length`` tokens that occurs earlier too."""
        state = self._link[self._whole]
        if state <= 0 or self._length[state] < min_length:
            return ()
        end = self._end[state]
        return tuple(self.text[end : end + limit])

    def note_ends(self) -> None:
        """Call it once what follows the end is known: the longest repeated suffix ends here most lately."""
        state = self._link[self._whole]
        if state > 0:
            self._end[state] = len(self.text)

    def _suffix_state(self, state: int, token: int) -> int:
        """The state of the strings of ``state`` followed by ``token``, on its own."""
        there = self._next[state][token]
        if self._length[there] == self._length[state] + 1:
            return there
        clone = self._state(dict(self._next[there]), self._length[state] + 1, self._end[there])
        self._link[clone] = self._link[there]
        self._link[there] = clone
        while state >= 0 and self._next[state].get(token) == there:
            self._next[state][token] = clone
            state = self._link[state]
        return clone

    def _state(self, following: dict[int, int], length: int, end: int) -> int:
        self._next.append(following)
        self._link.append(-1)
        self._length.append(length)
        self._end.append(end)
        return len(self._link) - 1


class SuffixProposer:
    """Drafts what followed the longest repeated suffix of a sequence, if that has ``min_matching_length`` tokens."""

    needs_tokens = True

    def __init__(self, max_draft_len: int, min_matching_length: int = 2) -> None:
        for name, value in (("max_draft_len", max_draft_len), ("min_matching_length", min_matching_length)):
            if value < 1:
                raise ConfigError(f"SADecodingConfig.{name}={value}: must be at least 1")
        self._max_draft_len = max_draft_len
        self._min_length = min_matching_length
        self._texts: dict[int, _Automaton] = {}

    def admit(self, seq_id: int, tokens: Sequence[int]) -> None:
        if seq_id in self._texts:
            raise ValueError(f"sequence {seq_id} is already admitted to the suffix proposer")
        self._texts[seq_id] = _Automaton()
        self.extend(seq_id, tokens)

    def extend(self, seq_id: int, tokens: Sequence[int]) -> None:
        text = self._texts[seq_id]
        for token in tokens:
            text.note_ends()
            text.append(token)

    def propose(self, seq_id: int, limit: int) -> tuple[int, ...]:
        return self._texts[seq_id].continuation(self._min_length, min(limit, self._max_draft_len))

    def drop(self, seq_id: int) -> None:
        del self._texts[seq_id]
