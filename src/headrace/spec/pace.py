"""How many drafts are worth while: by how many sequences run, and by how often drafts have been right.

The options are those of TensorRT-LLM's speculative configurations: ``max_concurrency``, ``draft_len_schedule``,
``acceptance_window`` and ``acceptance_length_threshold``. They change how many tokens a step yields, never which.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Mapping
from typing import Protocol

NO_LIMIT = 1 << 30


class Pace(Protocol):
    """Holds a proposer back."""

    def most(self, n_running: int) -> int:
        """Most drafts of a sequence in a step in which ``n_running`` sequences run."""
        ...

    def checked(self, n_accepted: int) -> None:
        """Drafts of a sequence have been checked, and so many were right."""
        ...


class FullPace:
    """Always as many drafts as the proposer has."""

    def most(self, n_running: int) -> int:
        return NO_LIMIT

    def checked(self, n_accepted: int) -> None:
        pass


FULL_PACE = FullPace()


class AdaptivePace:
    """See the head of this file.

    Args:
        max_concurrency: no drafts while more sequences run than this.
        schedule: number of running sequences -> most drafts of each. The smallest number that is not below how many
            run counts; beyond the largest there are no drafts.
        window, threshold: once the last ``window`` checks have yielded fewer than ``threshold`` tokens each on average,
            the target's own included, there are no drafts any more.
    """

    def __init__(
        self,
        *,
        max_concurrency: int | None = None,
        schedule: Mapping[int, int] | None = None,
        window: int | None = None,
        threshold: float | None = None,
    ) -> None:
        self._max_concurrency = NO_LIMIT if max_concurrency is None else max_concurrency
        self._schedule = dict(schedule or {NO_LIMIT: NO_LIMIT})
        self._bounds = sorted(self._schedule)
        self._yields: deque[int] = deque(maxlen=window)
        self._threshold = threshold
        self.is_off = False
        """For good: drafts were right too rarely."""

    def most(self, n_running: int) -> int:
        place = bisect.bisect_left(self._bounds, n_running)
        if self.is_off or n_running > self._max_concurrency or place == len(self._bounds):
            return 0
        return self._schedule[self._bounds[place]]

    def checked(self, n_accepted: int) -> None:
        if self._threshold is None:
            return
        self._yields.append(1 + n_accepted)
        if len(self._yields) == self._yields.maxlen and sum(self._yields) < self._threshold * len(self._yields):
            self.is_off = True
