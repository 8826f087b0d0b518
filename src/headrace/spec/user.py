"""Drafts by a function of the user's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..core.errors import RequestError

DraftFunction = Callable[[Sequence[int], int], Sequence[int]]
"""(prompt and output so far, most drafts) -> token ids that may follow, as many as it likes."""


class UserProposer:
    """Asks ``drafter`` about one sequence at a time. What it raises, or returns amiss, is that request's error."""

    needs_tokens = True

    def __init__(self, drafter: DraftFunction, max_draft_len: int, vocab_size: int) -> None:
        self._drafter = drafter
        self._max_draft_len = max_draft_len
        self._vocab_size = vocab_size
        self._texts: dict[int, list[int]] = {}

    def admit(self, seq_id: int, tokens: Sequence[int]) -> None:
        if seq_id in self._texts:
            raise ValueError(f"sequence {seq_id} is already admitted to the user's drafter")
        self._texts[seq_id] = list(tokens)

    def extend(self, seq_id: int, tokens: Sequence[int]) -> None:
        self._texts[seq_id].extend(tokens)

    def propose(self, seq_id: int, limit: int) -> tuple[int, ...]:
        limit = min(limit, self._max_draft_len)
        # A copy: the function may keep or change what it is given.
        text = list(self._texts[seq_id])
        try:
            drafts = [int(token) for token in self._drafter(text, limit)]
        except Exception as error:
            raise RequestError(f"the drafter of speculative_config failed: {type(error).__name__}: {error}") from error
        wrong = next((token for token in drafts if not 0 <= token < self._vocab_size), None)
        if wrong is not None:
            raise RequestError(
                f"the drafter of speculative_config gave token {wrong}; ids are 0 to {self._vocab_size - 1}"
            )
        return tuple(drafts[:limit])

    def drop(self, seq_id: int) -> None:
        del self._texts[seq_id]
