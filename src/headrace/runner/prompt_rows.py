"""What the rows of a prompt give beside keys and values: logprobs of the tokens that follow, and logits."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import torch

from headrace.core.plan import SlotInit, TokenLogprobs
from headrace.models.base import Model
from headrace.sampling import Sampler

_SLICE_ELEMENTS = 1 << 23
"""Logits are made in slices of about this many, so that a long prompt needs no huge matrix."""


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Of one sequence in one step."""

    logprobs: tuple[TokenLogprobs, ...] = ()
    """Of the tokens that follow the rows, as far as they are in the prompt."""
    logits: np.ndarray | None = None
    """Float32 [rows, V]."""


NO_ROWS = PromptRows()


class PromptRowMaker:
    """Looks at the logits of rows that are not sampled, or not only."""

    def __init__(self, model: Model, sampler: Sampler) -> None:
        self._model = model
        self._sampler = sampler

    def of(self, init: SlotInit, hidden: torch.Tensor, following: np.ndarray, counters: Counter[str]) -> PromptRows:
        """``hidden``: [rows, ...]; ``following``: int64, the tokens after the rows, as far as they are in the prompt.
        Raises ``RequestError``."""
        sampling = init.sampling
        n_rows, size = len(hidden), max(1, _SLICE_ELEMENTS // self._model.vocab_size)
        logprobs: list[TokenLogprobs] = []
        kept: list[np.ndarray] = []
        for first in range(0, n_rows, size):
            logits = self._model.logits(hidden[first : first + size])
            if sampling.prompt_logprobs is not None:
                tokens = following[first : first + len(logits)]
                logprobs += self._entries(init, logits[: len(tokens)], tokens, sampling.prompt_logprobs)
            if sampling.return_context_logits and init.output_index == 0:
                kept.append(logits.numpy().copy())
        counters["prompt_logprob_rows"] += len(logprobs)
        counters["logit_rows"] += sum(map(len, kept))
        return PromptRows(tuple(logprobs), np.concatenate(kept) if kept else None)

    def _entries(self, init: SlotInit, logits: torch.Tensor, tokens: np.ndarray, n_top: int) -> list[TokenLogprobs]:
        """Entries for ``tokens`` after rows of ``logits``. What stands for media may lie beyond the vocabulary, and is
        never drawn: it ranks behind all tokens."""
        places = [init.tokens[item.first] for item in init.media]
        stands = np.isin(tokens, places)
        entries = self._sampler.prompt_logprobs(logits, np.where(stands, 0, tokens), n_top)
        for at in np.flatnonzero(stands).tolist():
            entry, rank = entries[at], self._model.vocab_size + 1
            entries[at] = replace(entry, token=int(tokens[at]), logprob=-math.inf, rank=rank)
        return entries
