"""Logits processors: user code between the model and the sampler, on a copy of the logits."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ..core.errors import RequestError
from ..core.plan import SlotInit, TokenLogprobs
from ..core.processors import BatchedLogitsProcessor
from .contract import NO_TOKEN, SampleOutcome, Sampler, SampleRows

_NO_STREAM = None


class _Asked(NamedTuple):
    """What the sequence in a slot asked for."""

    req_id: int
    client_id: int
    own: tuple[Callable[..., None], ...]
    batched: bool


class _Row(NamedTuple):
    """A row that is processed."""

    index: int
    asked: _Asked
    token_ids: list[int]


class ProcessingSampler:
    """Runs processors, then the sampler within. What a processor raises is the matter of its row's request."""

    def __init__(
        self,
        inner: Sampler,
        batched: BatchedLogitsProcessor | None,
        named: Mapping[str, Callable[..., None]] = MappingProxyType({}),
    ) -> None:
        """``named``: those that requests ask for by name."""
        self._inner = inner
        self._named = named
        self._batched = batched
        self._asked: dict[int, _Asked] = {}
        """By slot."""

    def bind(self, init: SlotInit) -> None:
        self._asked.pop(init.slot, None)
        self._inner.bind(init)
        sampling = init.sampling
        if sampling.apply_batched_logits_processor and self._batched is None:
            raise RequestError(
                "SamplingParams.apply_batched_logits_processor: the engine has none;"
                " give LLM(batched_logits_processor=...)",
                param="apply_batched_logits_processor",
            )
        own = tuple(map(self._resolve, sampling.logits_processor or ()))
        if own or sampling.apply_batched_logits_processor:
            self._asked[init.slot] = _Asked(init.seq_id, init.request_id, own, sampling.apply_batched_logits_processor)

    def _resolve(self, processor: Callable[..., None] | str) -> Callable[..., None]:
        if not isinstance(processor, str):
            return processor
        if processor not in self._named:
            there = ", ".join(self._named) or "none; start with logits_processors={name: 'module:object'}"
            raise RequestError(
                f"SamplingParams.logits_processor: there is no processor {processor!r} here; there are: {there}",
                param="logits_processor",
            )
        return self._named[processor]

    def release(self, slot: int) -> None:
        self._asked.pop(slot, None)
        self._inner.release(slot)

    def sample(self, rows: SampleRows, logits: Tensor, model_logits: Tensor | None = None) -> SampleOutcome:
        found = self._rows(rows) if self._asked else []
        if not found:
            return self._inner.sample(rows, logits, model_logits)
        changed = logits.clone()
        errors = self._process(found, changed)
        for row in errors:
            changed[row] = logits[row]
        outcome = self._inner.sample(rows, changed, logits if model_logits is None else model_logits)
        for row in found:
            if row.index in outcome.errors:
                outcome.errors[row.index] += " (after a logits processor)"
        for index, error in errors.items():
            outcome.errors[index] = error
            outcome.tokens[index] = NO_TOKEN
            outcome.logprobs.pop(index, None)
        outcome.n_processed = len(found)
        return outcome

    def prompt_logprobs(self, logits: Tensor, next_tokens: np.ndarray, n_top: int) -> list[TokenLogprobs]:
        return self._inner.prompt_logprobs(logits, next_tokens, n_top)

    def _rows(self, rows: SampleRows) -> list[_Row]:
        which = np.array([row for row, slot in enumerate(rows.slots.tolist()) if slot in self._asked], np.int64)
        found = []
        for row, sequence in zip(which.tolist(), rows.sequence_of(which).tolist(), strict=True):
            slot = int(rows.slots[row])
            tokens = [*rows.history(slot).tolist(), *rows.drafts_before(row, sequence)]
            found.append(_Row(row, self._asked[slot], tokens))
        return found

    def _process(self, found: Sequence[_Row], logits: Tensor) -> dict[int, str]:
        """Changes ``logits``; row to traceback for those that could not be."""
        errors = {}
        for row in found:
            for processor in row.asked.own:
                try:
                    processor(
                        row.asked.req_id, _view(logits, row), [list(row.token_ids)], _NO_STREAM, row.asked.client_id
                    )
                except Exception:  # noqa: BLE001  user code: its request fails with whatever it was
                    errors[row.index] = f"SamplingParams.logits_processor raised\n{traceback.format_exc()}"
                    break
        together = [row for row in found if row.asked.batched and row.index not in errors]
        if together and self._batched is not None:
            errors |= _process_batch(self._batched, together, logits)
        return errors


def _process_batch(processor: BatchedLogitsProcessor, rows: Sequence[_Row], logits: Tensor) -> dict[int, str]:
    """All rows at once; if that fails, each by itself."""
    before = {row.index: logits[row.index].clone() for row in rows}
    try:
        _call(processor, rows, logits)
    except Exception:  # noqa: BLE001  user code
        trace = traceback.format_exc()
    else:
        return {}
    for row in rows:
        logits[row.index] = before[row.index]
    if len(rows) == 1:
        return {rows[0].index: f"LLM.batched_logits_processor raised\n{trace}"}
    errors = {}
    for row in rows:
        errors |= _process_batch(processor, [row], logits)
    return errors


def _call(processor: BatchedLogitsProcessor, rows: Sequence[_Row], logits: Tensor) -> None:
    processor(
        [row.asked.req_id for row in rows],
        [_view(logits, row) for row in rows],
        [[list(row.token_ids)] for row in rows],
        _NO_STREAM,
        [row.asked.client_id for row in rows],
    )


def _view(logits: Tensor, row: _Row) -> Tensor:
    return logits[row.index].view(1, 1, -1)
