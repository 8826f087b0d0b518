"""What a proposer of draft tokens promises. Plain decoding is the proposer that proposes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Proposer(Protocol):
    """Guesses the next tokens of sequences from their confirmed tokens. Lives on the host, beside the scheduler.

    Life of a sequence: ``admit`` once, then ``extend`` and ``propose`` in any order, then ``drop`` once. A preempted
    sequence stays admitted: its tokens are still true. Calls out of that order raise ``KeyError`` or ``ValueError``:
    they are mistakes of the caller.

    A guess changes how many tokens a step yields, never which: the verifier keeps a draft only where the target draws
    the same token. So a proposer may learn from strangers, forget, or be wrong, and need not be deterministic.
    """

    needs_tokens: bool
    """True: a guess is only worth making when all tokens of the sequence are known to the host, so the scheduler plans
    such a sequence only when nothing of it is in flight. The other sequences of the batch stay overlapped."""

    def admit(self, seq_id: int, tokens: Sequence[int]) -> None:
        """Takes up a sequence with its prompt (copied if kept). ``ValueError`` if it is there already."""
        ...

    def extend(self, seq_id: int, tokens: Sequence[int]) -> None:
        """Appends confirmed tokens, in order. ``KeyError`` if the sequence was not admitted."""
        ...

    def propose(self, seq_id: int, limit: int) -> tuple[int, ...]:
        """At most ``limit`` (>= 0) tokens that may follow the tokens given so far. Changes nothing that a caller can
        see. ``KeyError`` if the sequence was not admitted; ``RequestError`` if what the user gave for drafting failed:
        that sequence then ends."""
        ...

    def drop(self, seq_id: int) -> None:
        """Lets go of a sequence that has ended. ``KeyError`` if it was not admitted."""
        ...


class NoProposer:
    """Proposes nothing and remembers nothing: plain decoding."""

    needs_tokens = False

    def admit(self, seq_id: int, tokens: Sequence[int]) -> None:
        pass

    def extend(self, seq_id: int, tokens: Sequence[int]) -> None:
        pass

    def propose(self, seq_id: int, limit: int) -> tuple[int, ...]:
        return ()

    def drop(self, seq_id: int) -> None:
        pass
