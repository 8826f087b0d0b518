"""How often tokens have occurred: what penalties are made of. A function of the history; the counts are a cache."""

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
