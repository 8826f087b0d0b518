"""What options of sampling look at in the history. Each is a function of it alone; what is kept here is a cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class TokenCounts:
    """Distinct tokens of one sequence and how often each is in the output (not the prompt).

    ``advance`` takes the confirmed tokens so far and looks at the new ones only. Confirmed tokens do not change while
    the counts live; when there are fewer than before they are counted afresh. Drafts are added per row, to a copy.
    Ids from ``vocab_size`` on are left out: they stand for media in the prompt and have no logit.
    """

    def __init__(self, n_prompt: int, vocab_size: int) -> None:
        self._n_prompt = n_prompt
        self._vocab_size = vocab_size
        self._reset()

    def _reset(self) -> None:
        self._n_counted = 0
        self._column: dict[int, int] = {}  # token -> index in the arrays
        self._ids = np.empty(0, np.int64)
        self._in_output = np.empty(0, np.int64)

    def advance(self, tokens: np.ndarray) -> None:
        """``tokens``: int [n], prompt and output so far."""
        if len(tokens) < self._n_counted:
            self._reset()
        if self._n_counted < self._n_prompt:
            prompt = tokens[self._n_counted : self._n_prompt]
            self._add(np.unique(prompt).tolist(), 0)
            self._n_counted += len(prompt)
        self._add(tokens[self._n_counted :].tolist(), 1)
        self._n_counted = len(tokens)

    def with_drafts(self, drafts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """(distinct token ids, occurrences in the output) as int64 arrays, with ``drafts`` counted as output."""
        if not drafts:
            return self._ids[: len(self._column)], self._in_output[: len(self._column)]
        n_known = len(self._column)
        new: dict[int, int] = {}
        for token in drafts:
            if token < self._vocab_size and token not in self._column and token not in new:
                new[token] = n_known + len(new)
        ids = np.concatenate([self._ids[:n_known], np.fromiter(new, np.int64, len(new))])
        in_output = np.concatenate([self._in_output[:n_known], np.zeros(len(new), np.int64)])
        for token in drafts:
            if token < self._vocab_size:
                in_output[new[token] if token in new else self._column[token]] += 1
        return ids, in_output

    def _add(self, tokens: list[int], amount: int) -> None:
        for token in tokens:
            if token >= self._vocab_size:
                continue
            column = self._column.get(token)
            if column is None:
                column = self._column[token] = len(self._column)
                if column == len(self._ids):
                    self._grow()
                self._ids[column] = token
            self._in_output[column] += amount

    def _grow(self) -> None:
        more = np.zeros(max(64, len(self._ids)), np.int64)
        self._ids = np.concatenate([self._ids, more])
        self._in_output = np.concatenate([self._in_output, more])


class NgramIndex:
    """Which tokens would repeat an n-gram of a sequence's history.

    ``advance`` takes the confirmed tokens so far, as ``TokenCounts`` does; drafts are looked at without being kept.
    """

    def __init__(self, size: int, vocab_size: int) -> None:
        """``size``: tokens of an n-gram, n >= 1; 0 where nobody asks."""
        self._size = size
        self._vocab_size = vocab_size
        self._n_seen = 0
        self._after: dict[tuple[int, ...], dict[int, None]] = {}
        """n - 1 tokens -> the tokens that have followed them, in order."""

    def advance(self, tokens: np.ndarray) -> None:
        """``tokens``: int [n], prompt and output so far."""
        if len(tokens) < self._n_seen:
            self._n_seen = 0
            self._after.clear()
        rest = self._size - 1
        first = max(rest, self._n_seen)
        new = tokens[first - rest :].tolist()
        for start in range(len(new) - rest):
            self._after.setdefault(tuple(new[start : start + rest]), {})[new[start + rest]] = None
        self._n_seen = len(tokens)

    def banned(self, tokens: np.ndarray, drafts: Sequence[int]) -> np.ndarray:
        """Token ids, int64 and distinct, that may not follow ``tokens`` (what ``advance`` was given) + ``drafts``."""
        rest = self._size - 1
        if len(tokens) + len(drafts) < rest:
            return np.empty(0, np.int64)
        end = [*tokens[max(0, len(tokens) - rest) :].tolist(), *drafts]
        last = tuple(end[len(end) - rest :])
        found = dict(self._after.get(last, {}))
        for start in range(len(end) - rest):
            if tuple(end[start : start + rest]) == last:
                found[end[start + rest]] = None
        return np.array([token for token in found if token < self._vocab_size], np.int64)


class TopPDecay:
    """The top-p of a sequence's next token: ``first``, and after each token of the output ``first`` again if that was
    ``reset_id``, else max(top_p * decay, least). All in float64 (the factual-nucleus sampling of arXiv 2206.04624).
    """

    def __init__(self, n_prompt: int, first: float, decay: float, least: float, reset_id: int | None) -> None:
        self._n_prompt = n_prompt
        self._first = first
        self._decay = decay
        self._least = least
        self._reset_id = reset_id
        self._n_seen = n_prompt
        self._top_p = first

    def advance(self, tokens: np.ndarray) -> None:
        """``tokens``: int [n], prompt and output so far."""
        if len(tokens) < self._n_seen:
            self._n_seen, self._top_p = self._n_prompt, self._first
        self._top_p = self.with_drafts(tokens[self._n_seen :].tolist())
        self._n_seen = max(self._n_seen, len(tokens))

    def with_drafts(self, drafts: Sequence[int]) -> float:
        """The top-p of the token that follows what ``advance`` was given + ``drafts``."""
        top_p = self._top_p
        for token in drafts:
            top_p = self._first if token == self._reset_id else max(top_p * self._decay, self._least)
        return top_p
