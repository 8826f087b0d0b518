"""How the rows that decodes leave over are shared among sequences with more than one row to catch up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from headrace.core.errors import ConfigError
from headrace.core.plan import BLOCK_TOKENS


class ChunkingPolicy(Protocol):
    """Pure functions of numbers of rows."""

    whole: bool
    """True if what has never run must be computed in one step."""

    def shares(self, backlogs: Sequence[int], rows: int, n_joining: int) -> list[int]:
        """Rows for each running sequence, at most its backlog, ``rows`` in all. ``n_joining`` more may be admitted."""
        ...

    def first_share(self, backlog: int, rows: int, n_joining: int, fresh: bool) -> int:
        """Rows for the next of ``n_joining`` sequences to be admitted; 0: not in this step. ``fresh``: it never ran."""
        ...


class FirstComeFirstServed:
    """The first takes all it can."""

    whole = False

    def shares(self, backlogs: Sequence[int], rows: int, n_joining: int) -> list[int]:
        shares = []
        for backlog in backlogs:
            shares.append(min(backlog, rows))
            rows -= shares[-1]
        return shares

    def first_share(self, backlog: int, rows: int, n_joining: int, fresh: bool) -> int:
        return min(backlog, rows)


class EqualProgress:
    """Everybody gets a block's worth in turn, those that could join included."""

    whole = False

    def shares(self, backlogs: Sequence[int], rows: int, n_joining: int) -> list[int]:
        shares = [0] * len(backlogs)
        if n_joining:
            kept = rows * n_joining // (n_joining + len(backlogs))
            rows -= max(kept, min(BLOCK_TOKENS, rows // 2))
        while rows and any(share < backlog for share, backlog in zip(shares, backlogs, strict=True)):
            for at, backlog in enumerate(backlogs):
                given = min(BLOCK_TOKENS, backlog - shares[at], rows)
                shares[at] += given
                rows -= given
        return shares

    def first_share(self, backlog: int, rows: int, n_joining: int, fresh: bool) -> int:
        return min(backlog, rows, max(BLOCK_TOKENS, rows // n_joining))


class WholePrompts(FirstComeFirstServed):
    """Chunked prefill is off: a prompt is computed in one step. Only what is computed again after a preemption, which
    may be longer than a step, comes in pieces."""

    whole = True

    def first_share(self, backlog: int, rows: int, n_joining: int, fresh: bool) -> int:
        return min(backlog, rows) if backlog <= rows or not fresh else 0


_POLICIES: dict[str, type[ChunkingPolicy]] = {
    "FIRST_COME_FIRST_SERVED": FirstComeFirstServed,
    "EQUAL_PROGRESS": EqualProgress,
}


def chunking_policy(name: str, chunked_prefill: bool) -> ChunkingPolicy:
    """The policy of that name. Raises ``ConfigError`` for another."""
    if name not in _POLICIES:
        raise ConfigError(f"context_chunking_policy={name!r}; it is one of {', '.join(_POLICIES)}")
    return _POLICIES[name]() if chunked_prefill else WholePrompts()


def cut_chunk(start: int, share: int, backlog: int) -> int:
    """Rows of a chunk: ``share``, but a chunk that is not the last ends at a block border if it reaches one."""
    if share >= backlog:
        return backlog
    aligned = (start + share) // BLOCK_TOKENS * BLOCK_TOKENS - start
    return aligned if aligned > 0 else share
