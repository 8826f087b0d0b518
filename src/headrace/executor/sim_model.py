"""The model of the sim executor: a function of the history that is read back through the cache.

Every written position holds a digest of its token, its place and all that the position could see in every cache group,
as keys and values of a real model do. A token is drawn from that digest. So a wrong block, a copy left out, a stale or
doubly owned block, a window cut too early: each gives other tokens than the plain run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headrace.cache.specs import CacheSpec
from headrace.core.plan import BLOCK_TOKENS, Candidate, SlotInit, TokenLogprobs
from headrace.core.pooling import Pooling

_MASK = (1 << 64) - 1

Reader = Callable[[int, int, int], int]
"""(group, first, end) -> over positions first .. end-1: the sum of digests, each times its block's number + 1."""


def mix(*values: int) -> int:
    """A 64-bit digest: the finaliser of SplitMix64, chained."""
    state = 0x9E3779B97F4A7C15
    for value in values:
        state = (state ^ value) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 29) * 0x94D049BB133111EB & _MASK
        state ^= state >> 32
    return state


@dataclass(frozen=True, slots=True)
class SimModel:
    """Digest and draw. ``specs``: one per cache group."""

    specs: tuple[CacheSpec, ...]
    vocab_size: int

    def digest(self, token: int, position: int, read: Reader) -> int:
        """What position ``position`` writes into every group."""
        seen = [read(group, spec.reads_from(position), position) for group, spec in enumerate(self.specs)]
        return mix(token, position, *seen)

    def draw(self, digest: int, n_known: int, init: SlotInit) -> int:
        """The token after ``n_known`` tokens, whose last wrote ``digest``. End and stop ids do not come too early."""
        stream = (init.seed, init.output_index) if not init.sampling.is_greedy else ()
        token = mix(digest, *stream) % self.vocab_size
        if n_known - init.n_prompt < (init.sampling.min_tokens or 0):
            while token in init.stop_ids:
                token = (token + 1) % self.vocab_size
        return token

    def candidates(self, digest: int, n_known: int, init: SlotInit) -> tuple[Candidate, ...]:
        """Ways for a beam to go on, by logprobs of which some are equal."""
        is_early = n_known - init.n_prompt < (init.sampling.min_tokens or 0)
        shows = init.sampling.logprobs is not None
        found = [
            Candidate(token, -(mix(digest, token, 1) % 64) / 16.0, self.logprobs(digest, token) if shows else None)
            for token in range(self.vocab_size)
            if not (is_early and token in init.stop_ids)
        ]
        found.sort(key=lambda one: -one.logprob)
        return tuple(found[: init.n_candidates])

    def pool(self, before: int, digests: Sequence[int], pooling: Pooling) -> int:
        """What has been pooled when the rows of ``digests`` have come after ``before``."""
        for digest in digests:
            before = mix(before, digest) if pooling.needs_all_rows else digest
        return before

    def logprobs(self, digest: int, token: int) -> TokenLogprobs:
        """Numbers that depend on all that the row could see."""
        return TokenLogprobs(token, -float(mix(digest, token) % 1000) / 100.0, 1)


def blockwise_sum(digests: Sequence[int], first: int, end: int) -> int:
    """The sum of ``Reader`` over digests that lie in one piece, by position."""
    total = 0
    for number in range(first // BLOCK_TOKENS, -(-end // BLOCK_TOKENS)):
        begin = number * BLOCK_TOKENS
        total += (number + 1) * sum(digests[max(first, begin) : min(end, begin + BLOCK_TOKENS)])
    return total & _MASK


@dataclass(frozen=True, slots=True)
class PlainRun:
    """One sequence alone, token by token, without blocks, steps or drafts."""

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    prompt_logprobs: tuple[TokenLogprobs, ...]
    pooled: int | None = None
    """Of a prompt that is pooled, which is all there is then."""


def plain_run(model: SimModel, init: SlotInit) -> PlainRun:
    """What ``init.tokens`` (a prompt) is continued with, up to a stop id or ``init.max_length``."""
    history = list(init.tokens)
    digests: list[int] = []
    logprobs: list[TokenLogprobs] = []
    prompt_logprobs: list[TokenLogprobs] = []

    def read(group: int, first: int, end: int) -> int:
        return blockwise_sum(digests, first, end)

    while True:
        position = len(digests)
        digests.append(model.digest(history[position], position, read))
        if init.pooling is not None:
            if position + 1 == len(history):
                return PlainRun((), (), (), model.pool(0, digests, init.pooling))
            continue
        if position + 1 < len(history):
            prompt_logprobs.append(model.logprobs(digests[-1], history[position + 1]))
            continue
        token = model.draw(digests[-1], len(history), init)
        logprobs.append(model.logprobs(digests[-1], token))
        history.append(token)
        if token in init.stop_ids or len(history) == init.max_length:
            return PlainRun(tuple(history[init.n_prompt :]), tuple(logprobs), tuple(prompt_logprobs))
