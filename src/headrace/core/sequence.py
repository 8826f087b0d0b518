"""``Sequence``: one of a request's n outputs, from its arrival to its end, as the scheduler sees it.

What is stored are counters; everything else is derived. With steps in flight the host knows bounds only:

    position   0 ......... computed ......... scheduled
    written    [ confirmed ][ in flight, at most ]           known_bound = tokens there may be when all has landed
"""

from __future__ import annotations

import enum
from typing import Any

from .media import EncodedMedia, cache_keys
from .outputs import MissReason
from .plan import Rows, SeqWork
from .request import Request


class SequenceState(enum.Enum):
    """Where a sequence is. One that was preempted waits again."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Sequence:
    """Tokens and counters of one output. Only the scheduler changes it, through the methods below."""

    __slots__ = (
        "cached_tokens",
        "computed",
        "drafts_wait",
        "first_scheduled",
        "has_fetched",
        "in_proposer",
        "index",
        "keys",
        "kin",
        "last_planned",
        "lease",
        "max_length",
        "media",
        "miss",
        "n_accepted",
        "n_candidates",
        "n_context_logits",
        "n_drafts",
        "n_flying",
        "n_flying_positions",
        "n_flying_samples",
        "n_preempted",
        "n_prompt",
        "n_prompt_logprobs",
        "placeholders",
        "request",
        "seq_id",
        "slot",
        "standing",
        "state",
        "tokens",
        "wait_length",
        "waits_for_kin",
        "wants_context_logits",
        "wants_prompt_logprobs",
    )

    def __init__(
        self,
        seq_id: int,
        request: Request,
        index: int,
        max_length: int,
        *,
        drafts_wait: bool,
        n_candidates: int = 0,
        kin: int | None = None,
    ) -> None:
        self.seq_id = seq_id
        self.kin = seq_id if kin is None else kin
        """Beams of one request: the id of the first of them."""
        self.n_candidates = n_candidates
        """Of a beam: how many ways to go on its last row gives. 0: it gives a token."""
        self.waits_for_kin = False
        """The candidates are here, and those of the other beams are not: there is no next token yet."""
        self.request = request
        self.index = index
        self.max_length = max_length
        """Prompt and output together, at most."""
        self.drafts_wait = drafts_wait
        """True if somebody must see this sequence's tokens before the next ones are planned."""
        self.standing = (-request.priority, request.arrival, self.kin, seq_id)
        """Smaller goes first: higher priority, then earlier arrival."""
        self.tokens = list(request.prompt_token_ids)
        """Prompt and confirmed output."""
        self.media = EncodedMedia(request.media) if request.media else None
        self.keys = cache_keys(self.tokens, request.media) if request.media else self.tokens
        """The tokens as the cache compares them: placeholders go by the media that they stand for."""
        self.placeholders = frozenset(self.tokens[item.first] for item in request.media)
        """Tokens that stand for media."""
        self.n_prompt = len(self.tokens)
        self.computed = 0
        """Confirmed: keys and values up to here are written. 0 unless running."""
        self.state = SequenceState.WAITING
        self.slot = -1
        self.lease: Any = None
        """The blocks, while running."""
        self.n_flying = 0
        """Works in flight, their positions, and those of them that sample."""
        self.n_flying_positions = 0
        self.n_flying_samples = 0
        self.last_planned = -1
        """Step of the last work."""
        self.first_scheduled: float | None = None
        """Clock reading when the first work was planned."""
        self.n_drafts = 0
        """Draft tokens that came back checked, and how many of them were right."""
        self.n_accepted = 0
        self.wants_prompt_logprobs = request.sampling.prompt_logprobs is not None
        self.n_prompt_logprobs = 0
        """Entries that have been sent: about prompt positions 1 to this."""
        self.wants_context_logits = request.sampling.return_context_logits and index == 0
        self.n_context_logits = 0
        """Rows of the prompt whose logits have been sent."""
        self.n_preempted = 0
        self.cached_tokens: int | None = None
        """From the cache at the first admission; None before it."""
        self.miss: MissReason | None = None
        self.wait_length = -1
        """Length of the hit when it last waited for another sequence's block: it waits again only for a longer one."""
        self.has_fetched = False
        """It has waited for blocks from disk: it takes what has come, and does not wait again."""
        self.in_proposer = False

    def extend(self, tokens: tuple[int, ...]) -> None:
        """Confirmed output."""
        self.tokens.extend(tokens)
        if self.keys is not self.tokens:
            self.keys.extend(tokens)

    @property
    def scheduled(self) -> int:
        """Upper bound of the computed length when everything in flight has landed."""
        return self.computed + self.n_flying_positions

    @property
    def known_bound(self) -> int:
        """Upper bound of the number of tokens when everything in flight has landed."""
        return self.computed + self.n_flying_positions + 1 if self.n_flying_samples else len(self.tokens)

    @property
    def reusable_limit(self) -> int:
        """Most tokens that may come from the cache: one row at least is computed, and all that owe prompt logprobs or
        logits or are pooled."""
        if self.request.pooling is not None and self.request.pooling.needs_all_rows:
            return 0
        limit = len(self.tokens) - 1
        if self.wants_prompt_logprobs and self.n_prompt_logprobs < self.n_prompt - 1:
            limit = self.n_prompt_logprobs
        if self.wants_context_logits and self.n_context_logits < self.n_prompt:
            limit = min(limit, self.n_context_logits)
        return limit

    @property
    def can_continue(self) -> bool:
        """True if there are rows to plan now: the prompt's, or a token whose place is sure to be within the limit."""
        if self.waits_for_kin:
            return False
        if not self.n_flying_samples:
            return True
        return not self.drafts_wait and self.computed + self.n_flying_positions + 1 < self.max_length

    def outputs_of(self, start: int, n_tokens: int, n_drafts: int) -> Rows:
        """What rows from ``start`` on have to give."""
        if self.request.pooling is not None:
            return Rows.POOLED
        if self.wants_prompt_logprobs and start < self.n_prompt - 1 and start + n_tokens > self.n_prompt_logprobs:
            return Rows.ALL
        if self.wants_context_logits and start < self.n_prompt and start + n_tokens > self.n_context_logits:
            return Rows.ALL
        if start + n_tokens < self.known_bound:
            return Rows.NONE
        return Rows.DRAFTS if n_drafts else Rows.LAST

    def launch(self, work: SeqWork, *, samples: bool) -> None:
        """A work of this sequence has been planned."""
        self.n_flying += 1
        self.n_flying_positions += work.n_positions
        self.n_flying_samples += samples

    def land(self, work: SeqWork, *, samples: bool) -> None:
        """A work of this sequence has come back."""
        self.n_flying -= 1
        self.n_flying_positions -= work.n_positions
        self.n_flying_samples -= samples

    def __repr__(self) -> str:
        return (
            f"Sequence({self.seq_id}, request {self.request.request_id}.{self.index}, {self.state.value},"
            f" {self.computed}/{len(self.tokens)} computed, {self.n_flying} in flight)"
        )
