"""The sampler on the native core: the bits of ``TorchSampler``, in a few passes over a row and without sorting it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..core.plan import SlotInit, TokenLogprobs
from ..ops.native.core import native
from . import edits
from .checks import check_logits, check_masks, check_prompt_rows, check_prompt_tokens, problem_of
from .contract import NO_TOKEN, RowMasks, SampleOutcome, SampleRows
from .params import Flag, SamplerState

_CHANGES_LOGITS = int(Flag.of_logits())
_WANTS_LOGPROBS = int(Flag.RAW_LOGPROBS | Flag.PROCESSED_LOGPROBS)
_LOOKS_AT_TOP_P = int(Flag.DRAW | Flag.PROCESSED_LOGPROBS)
_NOBODY = np.empty(0, np.int64)


class NativeSampler:
    """See ``contract.Sampler``. Logits are on the CPU. ``EngineError`` where there is no native core."""

    def __init__(self, n_slots: int, vocab_size: int) -> None:
        self.state = SamplerState(n_slots, vocab_size)
        self._core = native()
        self._sampler = self._core.NativeSampler(vocab_size, self._core.slot_options(**self._options()))
        nothing = self._core.edits(0, 0, 0)
        self._no_edits = _PackedEdits((nothing,) * len(edits.KINDS), ())
        self._no_masks = self._core.Masks()
        self._no_logprobs = _LogprobColumns(self._core, 0, 0)

    def bind(self, init: SlotInit) -> None:
        self.state.bind(init)

    def release(self, slot: int) -> None:
        self.state.release(slot)

    def sample(self, rows: SampleRows, logits: Tensor, model_logits: Tensor | None = None) -> SampleOutcome:
        check_logits(logits, len(rows), self.state.vocab_size)
        n = len(rows)
        outcome = SampleOutcome(np.full(n, NO_TOKEN, np.int64))
        if n == 0:
            return outcome
        slots = np.ascontiguousarray(rows.slots, np.int64)
        positions = np.ascontiguousarray(rows.positions, np.int64)
        flags = self.state.flags[slots]
        # What some row asks for. The rest is not looked for: a draw takes no longer than looking does.
        some = int(np.bitwise_or.reduce(flags))
        found = self._find_edits(rows, flags) if some & _CHANGES_LOGITS else self._no_edits
        wanting = np.flatnonzero(flags & _WANTS_LOGPROBS) if some & _WANTS_LOGPROBS else _NOBODY
        columns = self._no_logprobs
        if len(wanting):
            width = int(self.state.n_logprobs[slots[wanting]].max())
            columns = _LogprobColumns(self._core, n, min(width, self.state.vocab_size))
        tops = np.empty(n, np.float32)
        top_p = edits.top_p_of(self.state, rows) if some & _LOOKS_AT_TOP_P else _NOBODY
        lines = _in_rows(logits)
        own = lines if model_logits is None else _in_rows(model_logits)
        masks, mask_arrays = self._masks(rows.masks)
        self._sampler.sample(
            lines.data_ptr(), lines.stride(0), own.data_ptr(), own.stride(0), n, _at(slots), _at(positions), _at(top_p),
            *found.kinds, masks, _at(outcome.tokens), _at(tops), columns.core,
        )  # fmt: skip
        del mask_arrays
        if some & _CHANGES_LOGITS:
            outcome.n_changed = int(np.count_nonzero(flags & _CHANGES_LOGITS))
        if outcome.tokens.min() == NO_TOKEN:
            for row in np.flatnonzero(outcome.tokens == NO_TOKEN).tolist():
                outcome.errors[row] = f"position {rows.positions[row]}: {problem_of(float(tops[row]))}"
        if len(wanting):
            good = wanting[outcome.tokens[wanting] != NO_TOKEN]
            outcome.logprobs = dict(zip(good.tolist(), columns.entries(good, outcome.tokens), strict=True))
        return outcome

    def prompt_logprobs(self, logits: Tensor, next_tokens: np.ndarray, n_top: int) -> list[TokenLogprobs]:
        check_logits(logits, len(next_tokens), self.state.vocab_size)
        check_prompt_tokens(next_tokens, self.state.vocab_size)
        n = len(next_tokens)
        if n == 0:
            return []
        tokens = np.ascontiguousarray(next_tokens, np.int64)
        columns = _LogprobColumns(self._core, n, min(n_top, self.state.vocab_size))
        tops = np.empty(n, np.float32)
        lines = _in_rows(logits)
        self._sampler.prompt_logprobs(lines.data_ptr(), lines.stride(0), n, _at(tokens), n_top, _at(tops), columns.core)
        check_prompt_rows(tops.tolist())
        return columns.entries(np.arange(n), tokens)

    def _options(self) -> dict[str, int]:
        """The arrays of the state, whose addresses do not change while it lives."""
        names = ("flags", "temperature", "top_k", "min_p", "seed_low", "seed_high", "output_index")
        names += ("repetition", "presence", "frequency", "n_logprobs")
        return {name: _at(getattr(self.state, name)) for name in names}

    def _masks(self, masks: RowMasks | None) -> tuple[Any, tuple[np.ndarray, ...]]:
        """As the core reads them, and what that points into."""
        if masks is None:
            return self._no_masks, ()
        check_masks(masks, self.state.vocab_size)
        index, words = np.ascontiguousarray(masks.index, np.int64), np.ascontiguousarray(masks.words, np.uint32)
        return self._core.masks(_at(index), _at(words), words.shape[1]), (index, words)

    def _find_edits(self, rows: SampleRows, flags: np.ndarray) -> _PackedEdits:
        kinds, arrays = list(self._no_edits.kinds), []
        for i, (flag, find) in enumerate(edits.KINDS):
            which = np.flatnonzero(flags & int(flag))
            if len(which):
                arrays.append(_packed(len(rows), which, find(self.state, rows, which)))
                kinds[i] = self._core.edits(*map(_at, arrays[-1]))
        return _PackedEdits(tuple(kinds), tuple(arrays))


class _PackedEdits(NamedTuple):
    """Edits as the core reads them."""

    kinds: tuple[Any, ...]
    """One for each of ``edits.KINDS``."""
    arrays: tuple[tuple[np.ndarray, ...], ...]
    """What they point into: kept alive until the step is done."""


def _packed(n_rows: int, which: np.ndarray, found: edits.Edits) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the ids of each row begin (int64 [n_rows + 1]), the ids, and their values. ``found``: of rows ``which``."""
    starts = np.zeros(n_rows + 1, np.int64)
    starts[which + 1] = [len(ids) for ids in found.ids]
    np.cumsum(starts, out=starts)
    ids = np.concatenate(found.ids)
    return starts, ids, np.concatenate(found.values) if found.values else ids


class _LogprobColumns:
    """Where the core writes the logprobs of so many rows, and of ``width`` most likely tokens in each."""

    def __init__(self, core: Any, n_rows: int, width: int) -> None:
        self._own = np.empty(n_rows, np.float64)
        self._ranks = np.empty(n_rows, np.int64)
        self._counts = np.empty(n_rows, np.int64)
        self._top_ids = np.empty((n_rows, width), np.int64)
        self._top_logprobs = np.empty((n_rows, width), np.float64)
        arrays = (self._own, self._ranks, self._counts, self._top_ids, self._top_logprobs)
        self.core = core.logprobs_out(width, *map(_at, arrays))

    def entries(self, which: np.ndarray, tokens: np.ndarray) -> list[TokenLogprobs]:
        """The logprobs of the rows ``which`` and their ``tokens`` (int [R], of all rows)."""
        columns = zip(
            tokens[which].tolist(),
            self._own[which].tolist(),
            self._ranks[which].tolist(),
            self._counts[which].tolist(),
            self._top_ids[which].tolist(),
            self._top_logprobs[which].tolist(),
            strict=True,
        )
        return [
            TokenLogprobs(token, logprob, rank, tuple(ids[:count]), tuple(logprobs[:count]))
            for token, logprob, rank, count, ids, logprobs in columns
        ]


def _in_rows(logits: Tensor) -> Tensor:
    """``logits`` itself where its rows are apart and each in one piece."""
    is_apart = len(logits) == 1 or logits.stride(0) >= logits.shape[1]
    return logits if logits.stride(1) == 1 and is_apart else logits.contiguous()


def _at(array: np.ndarray) -> int:
    """The address of an array in one piece."""
    return array.__array_interface__["data"][0]
