"""The beams of one request: sequences side by side, which share blocks, and change hands after every token.

Each beam is a sequence like any other. Its last row gives candidates instead of a token; when those of all beams are
there, ``BeamSearch`` says which beams go on and with what. A beam with one child goes on in its slot. Further children
are new sequences that fork it; a beam without children ends. Where there is no slot or no memory for a fork it waits in
line and is computed again, as after a preemption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from headrace.cache.manager import Placement
from headrace.core.plan import Candidate
from headrace.core.request import Request
from headrace.core.sequence import Sequence, SequenceState

from .beam_search import BeamSearch, Move
from .residents import Residents
from .waiting import WaitingQueue


@dataclass(slots=True)
class BeamGroup:
    """The living beams of a request, best first."""

    request: Request
    search: BeamSearch
    living: list[Sequence]
    live: dict[int, Sequence]
    """The same by index, as the scheduler knows them."""
    candidates: dict[Sequence, tuple[Candidate, ...]] = field(default_factory=dict)
    n_born: int = 1

    @property
    def is_complete(self) -> bool:
        """True if all beams have given candidates."""
        return len(self.candidates) == len(self.living)

    def advance(self) -> list[Move]:
        """The beams after the next token, best first. Takes the candidates."""
        given = [self.candidates[seq] for seq in self.living]
        self.candidates.clear()
        return self.search.advance(given)


@dataclass(slots=True)
class Turns:
    """What beams did in their slots since the last step, for the worker to hear in the next one."""

    appended: list[Sequence] = field(default_factory=list)
    """Beams that go on in their slots; the token is their last."""
    forked: list[tuple[Sequence, Placement]] = field(default_factory=list)

    def clear(self) -> None:
        self.appended.clear()
        self.forked.clear()


class Beams:
    """Moves beams from one token to the next."""

    def __init__(self, residents: Residents, waiting: WaitingQueue, turns: Turns, seq_ids: Iterator[int]) -> None:
        self._residents = residents
        self._waiting = waiting
        self._turns = turns
        self._seq_ids = seq_ids
        self.n_forks = 0
        """Beams that began with the blocks of another."""

    def take(self, group: BeamGroup, seq: Sequence, candidates: tuple[Candidate, ...]) -> None:
        """What the last row of ``seq`` gave. If it was preempted meanwhile, there is nothing left to compute."""
        group.candidates[seq] = candidates
        if seq.state is SequenceState.WAITING:
            self._waiting.discard(seq)
        seq.waits_for_kin = True
        if seq.state is SequenceState.WAITING:
            self._waiting.push(seq)

    def change(self, group: BeamGroup, moves: list[Move], end: Callable[[Sequence], None]) -> None:
        """Carries out ``moves``. ``end(beam)`` lets go of one without children."""
        before, sources = group.living, [move.source for move in moves]
        heirs: list[Sequence | None] = [None] * len(moves)
        for source, seq in enumerate(before):
            if source in sources:
                heirs[sources.index(source)] = seq
            else:
                end(seq)
        forks = [(place, move) for place, move in enumerate(moves) if heirs[place] is None]
        for place, move in forks:
            heirs[place] = self._fork(group, before[move.source], move.token)
        group.living = [seq for seq in heirs if seq is not None]
        for seq, move in zip(group.living, moves, strict=True):
            if seq is before[move.source]:
                self._go_on(seq, move.token)

    def _fork(self, group: BeamGroup, parent: Sequence, token: int) -> Sequence:
        seq = Sequence(
            next(self._seq_ids),
            parent.request,
            group.n_born,
            parent.max_length,
            drafts_wait=True,
            n_candidates=parent.n_candidates,
            kin=parent.kin,
        )
        group.n_born += 1
        group.live[seq.index] = seq
        seq.tokens = list(parent.tokens)
        seq.keys = seq.tokens if parent.keys is parent.tokens else list(parent.keys)
        seq.extend((token,))
        seq.cached_tokens, seq.miss, seq.first_scheduled = parent.cached_tokens, parent.miss, parent.first_scheduled
        seq.n_prompt_logprobs, seq.n_preempted = parent.n_prompt_logprobs, parent.n_preempted
        seq.wants_context_logits, seq.n_context_logits = parent.wants_context_logits, parent.n_context_logits
        placement = self._residents.fork(parent, seq) if parent.state is SequenceState.RUNNING else None
        if placement is None:
            self._waiting.push(seq)
        else:
            self._turns.forked.append((seq, placement))
            self.n_forks += 1
        return seq

    def _go_on(self, seq: Sequence, token: int) -> None:
        """The first child of a beam takes its place."""
        is_waiting = seq.state is SequenceState.WAITING
        if is_waiting:
            self._waiting.discard(seq)
        seq.waits_for_kin = False
        seq.extend((token,))
        if is_waiting:
            self._waiting.push(seq)
        else:
            self._turns.appended.append(seq)
