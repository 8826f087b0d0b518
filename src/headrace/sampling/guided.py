"""Guided decoding in front of a sampler: each row may give only what its output's grammar allows there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import Tensor

from ..core.errors import RequestError
from ..core.plan import SlotInit, TokenLogprobs
from ..guided.contract import Grammar
from .contract import NO_TOKEN, RowMasks, SampleOutcome, Sampler, SampleRows


class GuidedSampler:
    """Makes the masks of guided rows, then samples. Matchers follow the confirmed tokens; drafts are taken back."""

    def __init__(self, inner: Sampler, vocab_size: int) -> None:
        self._inner = inner
        self._width = -(-vocab_size // 32)
        self._vocab_size = vocab_size
        self._guides: dict[int, _Guide] = {}
        """By slot."""

    def bind(self, init: SlotInit) -> None:
        self._guides.pop(init.slot, None)
        self._inner.bind(init)
        if init.grammar is not None:
            ends = frozenset(token for token in init.stop_ids if token < self._vocab_size)
            self._guides[init.slot] = _Guide(init.grammar, init.n_prompt, ends)

    def release(self, slot: int) -> None:
        self._guides.pop(slot, None)
        self._inner.release(slot)

    def sample(self, rows: SampleRows, logits: Tensor, model_logits: Tensor | None = None) -> SampleOutcome:
        guided = [sequence for sequence, row in enumerate(rows.first_rows) if int(rows.slots[row]) in self._guides]
        if not guided:
            return self._inner.sample(rows, logits, model_logits)
        masks, errors = self._masks(rows, guided)
        outcome = self._inner.sample(replace(rows, masks=masks), logits, model_logits)
        for row, error in errors.items():
            outcome.errors[row] = error
            outcome.tokens[row] = NO_TOKEN
            outcome.logprobs.pop(row, None)
        outcome.n_masked = len(masks.words)
        return outcome

    def prompt_logprobs(self, logits: Tensor, next_tokens: np.ndarray, n_top: int) -> list[TokenLogprobs]:
        return self._inner.prompt_logprobs(logits, next_tokens, n_top)

    def _masks(self, rows: SampleRows, guided: list[int]) -> tuple[RowMasks, dict[int, str]]:
        """The masks, and what went wrong in which row."""
        index = np.full(len(rows), -1, np.int64)
        words: list[np.ndarray] = []
        errors: dict[int, str] = {}
        for sequence in guided:
            first = int(rows.first_rows[sequence])
            slot = int(rows.slots[first])
            masks, error = self._guides[slot].masks(rows.history(slot), rows.drafts[sequence], self._width)
            skipped = rows.n_skipped(sequence)
            own = masks[skipped:]
            index[first : first + len(own)] = np.arange(len(words), len(words) + len(own))
            words += own
            if error is not None and len(masks) >= skipped:
                # The rows after it are reached only through this one.
                errors[first + len(own)] = error
        stacked = np.stack(words) if words else np.zeros((0, self._width), np.uint32)
        return RowMasks(index, stacked), errors


class _Guide:
    """One output and its grammar."""

    def __init__(self, grammar: Grammar, n_prompt: int, ends: frozenset[int]) -> None:
        """``ends``: the tokens that end the output. They may come only where the grammar may end, whatever their text
        is: an output that ended by itself is whole."""
        self._grammar = grammar
        self._n_prompt = n_prompt
        self._ends = ends
        self._restart()

    def _restart(self) -> None:
        self._matcher = self._grammar.matcher()
        self._n_seen = self._n_prompt

    def masks(self, history: np.ndarray, drafts: tuple[int, ...], width: int) -> tuple[list[np.ndarray], str | None]:
        """Of the row after ``history``, and of each draft's row as far as the grammar allows the drafts: one that it
        does not is never accepted, so nobody looks at the rows behind it. And what is wrong with the row after."""
        masks: list[np.ndarray] = []
        try:
            for token in history[self._n_seen :].tolist():
                if not self._matcher.consume(token):
                    raise RequestError(f"guided_decoding: token {token} does not follow the grammar")
                self._n_seen += 1
            masks.append(self._mask(width))
            for draft in drafts:
                if draft in self._ends or not self._matcher.consume(draft):
                    break
                masks.append(self._mask(width))
            self._matcher.rollback(len(masks) - 1)
        except RequestError as error:
            # A matcher that has failed stays so. If it was a draft's fault, plain decoding may never come to it.
            self._restart()
            return masks, str(error)
        return masks, None

    def _mask(self, width: int) -> np.ndarray:
        words = np.zeros(width, np.uint32)
        may_end = self._matcher.fill(words)
        for token in self._ends:
            bit = np.uint32(1 << (token % 32))
            words[token // 32] = words[token // 32] | bit if may_end else words[token // 32] & ~bit
        return words
