"""What leaves the engine: once a step, a ``SequenceUpdate`` for every sequence that moved."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from .plan import FinishReason, TokenLogprobs
from .pooling import Pooled


class Logprob(NamedTuple):
    """Log probability of a token and its rank (1 = most likely) at a position."""

    logprob: float
    rank: int


class MissReason(enum.Enum):
    """Why a prompt was not taken from the cache further than it was."""

    DISABLED = "disabled"
    """enable_block_reuse is off."""
    PROMPT_LOGPROBS = "prompt_logprobs"
    """The prompt's rows had to be computed: for their logprobs, their logits, or to be pooled."""
    NO_ENTRY = "no_entry"
    """Nobody has computed these tokens under this salt."""
    EVICTED = "evicted"
    """They were there and had to make room."""
    OUT_OF_WINDOW = "out_of_window"
    """A sliding layer has let go of blocks that it would need to resume there."""


class SequenceUpdate(msgspec.Struct, frozen=True, array_like=True):
    """News of one sequence after a step. A struct, since every step sends one for every sequence that runs."""

    request_id: int
    index: int
    """Which of the request's n outputs."""
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """The next entries of the prompt's logprobs, in order from prompt position 1 on; each is sent once."""
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    error: Exception | None = None
    cached_tokens: int = 0
    """Prompt tokens taken from the cache at the first admission."""
    cache_miss: MissReason | None = None
    """Why not more of them; None if all that could be were, or before the first admission."""
    n_preempted: int = 0
    time: float = 0.0
    """Clock reading when the step was applied."""
    first_scheduled: float | None = None
    """Clock reading when the first step with rows of the sequence was planned."""
    n_drafts: int = 0
    """Draft tokens that were checked so far, and how many of them were right."""
    n_accepted: int = 0
    pooled: Pooled | None = None
    """Comes with the finish of a request that was encoded."""
    cumulative_logprob: float | None = None
    """Comes with the finish of a beam: the sum of the logprobs that it was compared by."""
    context_logits: Any = None
    """The next rows of the prompt's logits, if asked for: float32 [rows, V]. They come with output 0."""
    generation_logits: Any = None
    """Those of ``tokens``, if asked for: so many rows of float32 [V]."""


@dataclass(slots=True)
class RequestPerfMetrics:
    """The life of a request; seconds on the engine's clock."""

    arrival_time: float = 0.0
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    last_token_time: float | None = None
    cached_tokens: int = 0
    """Prompt tokens that came from the cache."""
    cache_miss: MissReason | None = None
    """Why not more of them; None if all that could be were."""
    preemptions: int = 0
    draft_tokens: int = 0
    accepted_draft_tokens: int = 0


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """How the engine loop is, as seen from outside."""

    dead: Exception | None
    """Why it has ended; None while it can go on."""
    is_idle: bool
    """Nothing is under way."""
    heartbeat: float
    """Clock reading when the loop last began a turn; an idle loop does not turn, and its heart beats all the same."""
