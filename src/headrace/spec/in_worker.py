"""Drafts that a model in the worker makes: the host only says how many."""

from __future__ import annotations

from ..core.plan import FROM_DRAFTER
from .proposer import NoProposer


class WorkerProposer(NoProposer):
    """Asks the worker's drafter for ``max_draft_len`` drafts. Nobody waits for tokens, so that steps stay overlapped;
    but with ``needs_tokens`` they do, and near an output's end there are no fewer drafts than there could be."""

    def __init__(self, max_draft_len: int, *, needs_tokens: bool = False) -> None:
        self.needs_tokens = needs_tokens
        self._max_draft_len = max_draft_len

    def propose(self, seq_id: int, limit: int) -> tuple[int, ...]:
        return (FROM_DRAFTER,) * min(limit, self._max_draft_len)
