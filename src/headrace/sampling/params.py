"""Sampling options by slot: what each running sequence asked for, in arrays that a step gathers from.

Everything a step needs to know about a sequence is filled in once, by ``SamplerState.bind``. A step finds the rows that
need some work by testing bits in ``flags``; it never looks at a ``SamplingParams``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import numpy as np

from ..core.plan import SlotInit
from ..core.sampling_params import SamplingParams, check_tokens
from .history import NgramIndex, TokenCounts, TopPDecay

IntArray = np.ndarray
_F32_MAX = float(np.finfo(np.float32).max)
_F32_TINY = float(np.finfo(np.float32).tiny)


class Flag(enum.IntFlag):
    """Work that the rows of a slot need, beyond taking the largest logit."""

    BIAS = enum.auto()
    PENALTIES = enum.auto()
    MIN_TOKENS = enum.auto()
    BAD_WORDS = enum.auto()
    NGRAMS = enum.auto()
    DRAW = enum.auto()
    """Not greedy."""
    ORDER = enum.auto()
    """Top-k or top-p: tokens must be looked at in order."""
    MIN_P = enum.auto()
    RAW_LOGPROBS = enum.auto()
    PROCESSED_LOGPROBS = enum.auto()
    TOP_P_DECAY = enum.auto()

    @classmethod
    def of_logits(cls) -> Flag:
        """What changes logits."""
        return cls.BIAS | cls.PENALTIES | cls.MIN_TOKENS | cls.BAD_WORDS | cls.NGRAMS


@dataclass(slots=True)
class SlotTokens:
    """Token ids that go with one slot: of any length, so not in arrays over slots."""

    bias_ids: IntArray
    bias: np.ndarray
    end_ids: IntArray
    """Forbidden before ``min_tokens``."""
    bad_ids: IntArray
    """Forbidden always."""
    bad_sequences: tuple[tuple[tuple[int, ...], int], ...]
    """(what must stand at the end of the history, the token then forbidden)."""
    counts: TokenCounts
    ngrams: NgramIndex
    top_p: TopPDecay
    bad_reach: int = field(init=False)
    """Tokens at the end of the history that ``bad_sequences`` look at."""

    def __post_init__(self) -> None:
        self.bad_reach = max((len(prefix) for prefix, _ in self.bad_sequences), default=0)


class SamplerState:
    """The options of all slots. Arrays have one element per slot; those of a released slot mean nothing.

    ``bind`` raises ``RequestError`` for options that do not fit the vocabulary, and then leaves the slot released.
    """

    def __init__(self, n_slots: int, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.flags = np.zeros(n_slots, np.int64)
        self.temperature = np.ones(n_slots, np.float32)
        self.top_k = np.full(n_slots, vocab_size, np.int64)
        self.top_p = np.ones(n_slots, np.float64)
        """That of the first token, where it decays."""
        self.min_p = np.zeros(n_slots, np.float64)
        self.seed_low = np.zeros(n_slots, np.int64)
        self.seed_high = np.zeros(n_slots, np.int64)
        self.output_index = np.zeros(n_slots, np.int64)
        self.repetition = np.ones(n_slots, np.float32)
        self.presence = np.zeros(n_slots, np.float32)
        self.frequency = np.zeros(n_slots, np.float32)
        self.min_length = np.zeros(n_slots, np.int64)
        """Prompt length + ``min_tokens``: end ids are forbidden at positions below it."""
        self.n_logprobs = np.zeros(n_slots, np.int64)
        self.tokens: list[SlotTokens | None] = [None] * n_slots

    def bind(self, init: SlotInit) -> None:
        """Takes over the options of the sequence that the slot now belongs to."""
        slot, sampling = init.slot, init.sampling
        self.release(slot)
        check_tokens(sampling, self.vocab_size)
        self._bind_draw(slot, sampling)
        self.seed_low[slot] = init.seed & 0xFFFFFFFF
        self.seed_high[slot] = init.seed >> 32
        self.output_index[slot] = init.output_index
        self.repetition[slot] = 1.0 if sampling.repetition_penalty is None else sampling.repetition_penalty
        self.presence[slot] = sampling.presence_penalty or 0.0
        self.frequency[slot] = sampling.frequency_penalty or 0.0
        self.min_length[slot] = init.n_prompt + (sampling.min_tokens or 0)
        self.n_logprobs[slot] = max(init.n_candidates, sampling.logprobs or 0)
        self.tokens[slot] = self._slot_tokens(init)
        self.flags[slot] = self._flags(slot, sampling, is_beam=init.n_candidates > 0)

    def release(self, slot: int) -> None:
        """Lets go of what the slot holds."""
        self.tokens[slot] = None
        self.flags[slot] = 0

    def tokens_of(self, slot: int) -> SlotTokens:
        tokens = self.tokens[slot]
        if tokens is None:
            raise KeyError(f"slot {slot} is not bound to a sequence")
        return tokens

    def _bind_draw(self, slot: int, sampling: SamplingParams) -> None:
        """Greedy slots hold temperature 1 and no filter: what their processed logprobs are made of. Beams have no
        filter either; for them temperature 0 is 1."""
        greedy = sampling.is_greedy
        temperature = 1.0 if greedy or sampling.temperature is None else sampling.temperature
        self.temperature[slot] = max(temperature, _F32_TINY)
        top_k = 0 if greedy else sampling.top_k or 0
        self.top_k[slot] = min(top_k or self.vocab_size, self.vocab_size)
        self.top_p[slot] = 1.0 if greedy or sampling.top_p is None else sampling.top_p
        self.min_p[slot] = 0.0 if greedy else sampling.min_p or 0.0

    def _slot_tokens(self, init: SlotInit) -> SlotTokens:
        sampling = init.sampling
        bias = sampling.embedding_bias or {}
        bad = sampling.bad_token_ids or ()
        return SlotTokens(
            bias_ids=np.fromiter(bias.keys(), np.int64, len(bias)),
            bias=np.fromiter(bias.values(), np.float64, len(bias)).astype(np.float32),
            # A model may name an end id beyond the logits it gives; that one cannot be drawn anyway.
            end_ids=np.array(sorted(token for token in init.stop_ids if token < self.vocab_size), np.int64),
            bad_ids=np.array(sorted({sequence[0] for sequence in bad if len(sequence) == 1}), np.int64),
            bad_sequences=tuple((sequence[:-1], sequence[-1]) for sequence in bad if len(sequence) > 1),
            counts=TokenCounts(init.n_prompt, self.vocab_size),
            ngrams=NgramIndex(sampling.no_repeat_ngram_size or 0, self.vocab_size),
            top_p=TopPDecay(
                init.n_prompt,
                float(self.top_p[init.slot]),
                1.0 if sampling.top_p_decay is None else sampling.top_p_decay,
                0.0 if sampling.top_p_min is None else sampling.top_p_min,
                sampling.top_p_reset_ids,
            ),
        )

    def _flags(self, slot: int, sampling: SamplingParams, *, is_beam: bool) -> Flag:
        """The rows of a beam give the logprobs that beams are compared by, and draw nothing."""
        greedy = sampling.is_greedy or is_beam
        wants_logprobs = sampling.logprobs is not None or is_beam
        is_raw = sampling.logprobs_mode == "raw" and not is_beam
        decays = not greedy and not (sampling.top_p_decay is None and sampling.top_p_min is None)
        has_penalty = self.repetition[slot] != 1.0 or self.presence[slot] != 0.0 or self.frequency[slot] != 0.0
        wanted = {
            Flag.BIAS: bool(sampling.embedding_bias),
            Flag.PENALTIES: bool(has_penalty),
            Flag.MIN_TOKENS: bool(sampling.min_tokens) and len(self.tokens_of(slot).end_ids) > 0,
            Flag.BAD_WORDS: bool(sampling.bad_token_ids),
            Flag.NGRAMS: bool(sampling.no_repeat_ngram_size),
            Flag.DRAW: not greedy,
            Flag.ORDER: bool(self.top_k[slot] < self.vocab_size or self.top_p[slot] < 1.0 or decays),
            Flag.MIN_P: bool(self.min_p[slot] > 0.0),
            Flag.RAW_LOGPROBS: wants_logprobs and is_raw,
            Flag.PROCESSED_LOGPROBS: wants_logprobs and not is_raw,
            Flag.TOP_P_DECAY: decays,
        }
        flags = Flag(0)
        for flag, is_on in wanted.items():
            if is_on:
                flags |= flag
        return flags
