"""What the scheduler asks of a worker, and what comes back.

There are no phases. A prefill, a chunk of one, a decode, the verification of drafts, the recompute after a preemption:
each is a ``SeqWork`` with other numbers. All records are frozen, picklable and printable, and import no torch. Those of
which a step makes one for every sequence are structs of msgspec: a frozen dataclass takes ten times as long to make.

A plan names slots and upper bounds. Under overlap the host plans a step before the step before it has come back, so it
does not know how many drafts were accepted, or whether a sequence has stopped. The worker owns the truth per slot
(history, computed length, stop flag) and resolves ``start`` to it: the true start is never beyond the planned one.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from .lora import PlacedAdapter
from .media import MediaItem
from .pooling import Pooled, Pooling

if TYPE_CHECKING:
    from .sampling_params import SamplingParams

BLOCK_TOKENS = 32
"""Tokens per cache block, in every cache group."""


FROM_DRAFTER = -1
"""Stands in ``SeqWork.draft_tokens`` for a draft that the worker's own draft model is to make. It may make fewer."""


class Rows(enum.Enum):
    """Which rows of a unit of work give an output."""

    NONE = "none"
    """No row: a chunk that ends before the end of the known tokens."""
    LAST = "last"
    """The last row: its logits are sampled."""
    DRAFTS = "drafts"
    """The last known row and every draft row: sampled and verified."""
    ALL = "all"
    """Every row: prompt logprobs. If the work reaches the end of the known tokens its last row is sampled as well."""
    POOLED = "pooled"
    """Every row is handed to the slot's pooling, and nothing is sampled: the end of the known tokens is the end."""


class FinishReason(enum.Enum):
    """Why a sequence ended. The values are the API's words."""

    STOP = "stop"
    LENGTH = "length"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    ERROR = "error"


class SeqWork(msgspec.Struct, frozen=True):
    """One sequence's share of a step: rows for positions ``start .. start + n_positions - 1``.

    ``n_tokens`` rows hold tokens of the slot's history (known to the worker, perhaps not yet to the host); the draft
    rows follow. The block tables of the slot cover every position of the bound.
    """

    slot: int
    seq_id: int
    start: int
    n_tokens: int
    outputs: Rows
    draft_tokens: tuple[int, ...] = ()
    more_drafts: int = 0
    """Rows for drafts beside those, at the same positions: of a tree that the worker's own drafter may grow."""

    @property
    def n_positions(self) -> int:
        return self.n_tokens + len(self.draft_tokens)

    @property
    def n_rows(self) -> int:
        return self.n_positions + self.more_drafts

    @property
    def end(self) -> int:
        """Upper bound of the slot's computed length after the step."""
        return self.start + self.n_positions


@dataclass(frozen=True, slots=True)
class SlotInit:
    """Binds a slot to a sequence, before the works of the plan run.

    A sequence that comes back after a preemption is bound afresh: ``tokens`` is then prompt + output so far, while
    ``n_prompt`` still says where the output begins (penalties, ``min_tokens`` and ``max_tokens`` count from there).
    """

    slot: int
    seq_id: int
    tokens: tuple[int, ...]
    n_prompt: int
    computed: int
    """Tokens whose KV is already in the blocks of the slot: a prefix hit."""
    sampling: SamplingParams
    seed: int
    output_index: int
    """Which of the request's n outputs: part of the counter of its random stream."""
    stop_ids: frozenset[int]
    """Token ids that end the sequence: end-of-sequence ids (unless ignored) and ``stop_token_ids``."""
    eos_ids: frozenset[int]
    """The end-of-sequence ids among them: what ``min_tokens`` forbids, together with ``stop_token_ids``."""
    max_length: int
    """Total length (prompt + output) at which the sequence ends with LENGTH."""
    pooling: Pooling | None = None
    """What is taken from the prompt's rows; None: it is continued."""
    request_id: int = -1
    """The request's, as its user knows it; -1 where nobody asks."""
    identity: str | None = None
    """What prefixes of it are shared under (``Request.cache_identity``)."""
    second_from: int | None = None
    """Where the second of two texts begins; None: there is one."""
    grammar: Any = None
    """A ``guided.contract.Grammar`` that the output follows; None: it is free."""
    media: tuple[MediaItem, ...] = ()
    """Of the prompt, in order of position."""
    encodes: bool = False
    """The keys and values of the media are to be made, and written to the slot's blocks for them."""
    n_candidates: int = 0
    """Of a beam: how many ways to go on its sampled rows give, at most. 0: they give a token."""
    adapter: PlacedAdapter | None = None
    """What its rows are computed with; None: the model alone."""


@dataclass(frozen=True, slots=True)
class SlotAppend:
    """The next token of a beam that goes on in its slot: which one was chosen among the candidates of all beams."""

    slot: int
    token: int


@dataclass(frozen=True, slots=True)
class BlockUpdate:
    """Block ids of one cache group, written into the slot's block table from ``first`` on."""

    slot: int
    group: int
    first: int
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """Copy a whole block before the works run: how a prefix that ends inside a block is reused."""

    group: int
    src: int
    dst: int
    from_running: bool = False
    """The source belongs to a beam that goes on writing it, in this step at the earliest."""
    after: int = 0
    """Moves of the step that are made before it."""


class MoveKind(enum.Enum):
    """From where to where a block of the cache is moved. The arena is where steps compute; host and disk keep."""

    OFFLOAD = "offload"
    """From the arena to the host tier."""
    ONBOARD = "onboard"
    """From the host tier to the arena."""
    SPILL = "spill"
    """From the host tier to the disk tier."""
    FETCH = "fetch"
    """From the disk tier to the host tier."""


@dataclass(frozen=True, slots=True)
class BlockMove:
    """Copy a block of one cache group between two tiers; each counts its blocks on its own."""

    kind: MoveKind
    group: int
    src: int
    dst: int


class SeqEnd(NamedTuple):
    """A sequence has ended, whoever found out."""

    seq_id: int
    reason: FinishReason


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step. The worker obeys the fields in this order: ended, appends, released, inits, block_updates, moves and
    copies, works.

    Moves and copies are made one after the other: a later one may write where an earlier one has read. A step may have
    moves or ends and no works.
    """

    step: int
    works: tuple[SeqWork, ...]
    appends: tuple[SlotAppend, ...] = ()
    inits: tuple[SlotInit, ...] = ()
    block_updates: tuple[BlockUpdate, ...] = ()
    copies: tuple[BlockCopy, ...] = ()
    moves: tuple[BlockMove, ...] = ()
    ended: tuple[SeqEnd, ...] = ()
    """Sequences that have ended since the plan before, where the worker wants to know: all that it computed of them
    came in plans before."""
    released: tuple[int, ...] = ()
    """Slots that sequences have left since the step before; one may be bound again in this step."""

    @property
    def n_rows(self) -> int:
        return sum(work.n_rows for work in self.works)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log probabilities at one position: the token that is there, and the most likely ones.

    ``ranks`` start at 1. ``top_ids`` are sorted by falling logprob, ties to the lower id, and may hold ``token``.
    """

    token: int
    logprob: float
    rank: int
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


class Candidate(msgspec.Struct, frozen=True):
    """One way in which a beam may go on."""

    token: int
    logprob: float
    """After penalties, masks and temperature: what beams are compared by."""
    shown: TokenLogprobs | None = None
    """What its request gets to see of the token, if it asked for logprobs."""
    logits: Any = None
    """The row that it comes from: float32 [V], if its request asked for generation logits."""


class SeqResult(msgspec.Struct, frozen=True):
    """What a step did for one sequence."""

    slot: int
    seq_id: int
    computed: int
    """True computed length of the slot after the step: KV up to here is right and will not change."""
    tokens: tuple[int, ...] = ()
    """New tokens in order: accepted drafts, then the target's own. Empty for a chunk, or a slot that had stopped."""
    n_drafts: int = 0
    """Draft rows that were verified (a draft cut before verification, or not made, does not count); all of a tree."""
    n_accepted: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One entry per new token, if asked for."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """One entry per row of ``Rows.ALL`` that is followed by a prompt token: entry i is about position start + i + 1."""
    finish: FinishReason | None = None
    """STOP or LENGTH, found by the worker from the last of ``tokens``."""
    stop_reason: int | None = None
    """The token id that stopped it, if it was in ``stop_token_ids`` rather than an end-of-sequence id."""
    pooled: Pooled | None = None
    """Comes with the finish of a pooled sequence."""
    candidates: tuple[Candidate, ...] = ()
    """Of a beam, in place of ``tokens``: the likeliest first, ties to the lower id."""
    context_logits: Any = None
    """The model's logits of the rows of the prompt, from ``start`` on: float32 [rows, V], if asked for."""
    generation_logits: Any = None
    """Those that ``tokens`` were drawn from: float32 [len(tokens), V], if asked for."""
    error: str | None = None
    """Something that came with this request failed in the worker; only this sequence ends."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """Results in the order of the plan's works."""

    step: int
    results: tuple[SeqResult, ...]
    seconds: float = 0.0
    """Time the worker spent on the step."""
    counters: dict[str, int] = field(default_factory=dict)
    """Witnesses counted in the worker, by their name in ``get_stats``."""
    failed_moves: tuple[int, ...] = ()
    """Places in the plan's moves of those from or to the disk that failed: what they name is lost."""
