"""Hidden states on disk: what the model makes of every token of finished requests, for a draft head to learn from.

A file is what ``torch.save`` makes of a list of dicts, one for each output, in the order in which they ended:

    id, index        of the request and the output
    input_ids        [S] int64: prompt and output but for its last token, which the model has not read
    prompt_tokens    how many of them are the prompt's
    temperature      of the output, 0 for a greedy one
    hidden_state     [S, hidden]: what the model's head reads
    aux_hidden_states  [S, n_layers * hidden]: outputs of the captured layers, side by side
    layers           which layers those are, from 0 on

It appears under its name when it is complete. What cannot be written stays in memory, the next requests fail with the
reason until it can be, and so does the end of the engine.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from headrace.core.errors import ConfigError, EngineError, RequestError
from headrace.core.plan import FinishReason, SeqEnd, SeqResult, SlotInit
from headrace.models.taps import Taps

from .gather import ResolvedWork
from .slots import SlotTable

log = logging.getLogger("headrace")

_WHOLE = (FinishReason.STOP, FinishReason.LENGTH)
"""Ends of outputs that are written; cancelled and failed ones are not."""


class Saver(Protocol):
    """Keeps what the model made of a step's rows."""

    def bind(self, init: SlotInit) -> None:
        """The slot now belongs to this sequence. ``RequestError`` if its states cannot be kept."""
        ...

    def observe(self, resolved: Sequence[ResolvedWork], results: Sequence[SeqResult]) -> int:
        """The end of a step, as ``Drafter.observe`` sees it; how many rows were kept."""
        ...

    def end(self, ended: Sequence[SeqEnd]) -> None:
        """Sequences that the host has seen the end of."""
        ...

    def close(self) -> None:
        """Raises ``EngineError`` if something could not be written."""
        ...


class NoSaver:
    """Keeps nothing."""

    def bind(self, init: SlotInit) -> None:
        pass

    def observe(self, resolved: Sequence[ResolvedWork], results: Sequence[SeqResult]) -> int:
        return 0

    def end(self, ended: Sequence[SeqEnd]) -> None:
        pass

    def close(self) -> None:
        pass


NO_SAVER = NoSaver()


@dataclass(slots=True)
class _Output:
    """One in the making."""

    init: SlotInit
    tokens: list[int] = field(default_factory=list)
    """Those that the model has read."""
    aux: list[torch.Tensor] = field(default_factory=list)
    last: list[torch.Tensor] = field(default_factory=list)

    def record(self, layers: Sequence[int]) -> dict[str, Any]:
        sampling = self.init.sampling
        return {
            "id": self.init.request_id,
            "index": self.init.output_index,
            "input_ids": torch.tensor(self.tokens),
            "prompt_tokens": self.init.n_prompt,
            "temperature": 0.0 if sampling.is_greedy else float(sampling.temperature or 1.0),
            "hidden_state": torch.cat(self.last),
            "aux_hidden_states": torch.cat(self.aux),
            "layers": list(layers),
        }


class StateFiles:
    """Numbered files of records in one folder.

    Raises ``ConfigError`` if the folder cannot be made or read.
    """

    def __init__(self, folder: Path, prefix: str, interval: int) -> None:
        self._folder, self._prefix, self._interval = folder, prefix, interval
        try:
            folder.mkdir(parents=True, exist_ok=True)
            taken = [path.stem.removeprefix(f"{prefix}_") for path in folder.glob("*.pt")]
            probe = folder / f".{prefix}.partial"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise ConfigError(f"SaveHiddenStatesDecodingConfig.output_directory={str(folder)!r}: {error}") from None
        self._next = 1 + max((int(number) for number in taken if number.isdecimal()), default=-1)
        self._records: list[dict[str, Any]] = []
        self.problem = ""
        """Why the last attempt to write failed; empty: it did not."""

    def add(self, record: dict[str, Any]) -> None:
        self._records.append(record)
        if len(self._records) >= self._interval:
            self.write()

    def write(self) -> None:
        """Everything that is there."""
        if not self._records:
            return
        path = self._folder / f"{self._prefix}_{self._next}.pt"
        partial = self._folder / f".{self._prefix}.partial"
        try:
            with partial.open("wb") as file:
                torch.save(self._records, file)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(path)
        except OSError as error:
            self.problem = f"the hidden states of {len(self._records)} outputs cannot be written to {path}: {error}"
            log.error("%s", self.problem)
            return
        self.problem, self._records = "", []
        self._next += 1


class StateSaver:
    """See the head of this file.

    Args:
        taps: of the model: the captured layers, and the last state.
        layers: which layers those are.
    """

    def __init__(self, taps: Taps, layers: Sequence[int], slots: SlotTable, files: StateFiles) -> None:
        self._taps, self._layers, self._slots, self._files = taps, tuple(layers), slots, files
        self._open: dict[int, _Output] = {}
        """By sequence id."""

    def bind(self, init: SlotInit) -> None:
        if init.n_candidates:
            raise RequestError(
                "use_beam_search: beams share what was computed, so that SaveHiddenStatesDecodingConfig has no states"
                " of each; leave it out",
                param="use_beam_search",
            )
        if self._files.problem:
            self._files.write()
        if self._files.problem:
            raise RequestError(f"SaveHiddenStatesDecodingConfig: {self._files.problem}")
        if init.pooling is None:
            # Afresh after a preemption, too: everything is computed again.
            self._open[init.seq_id] = _Output(init)

    def observe(self, resolved: Sequence[ResolvedWork], results: Sequence[SeqResult]) -> int:
        n_rows = 0
        for item in resolved:
            one = results[item.index]
            output = self._open.get(one.seq_id)
            if output is None:
                continue
            if one.error is not None:
                del self._open[one.seq_id]
                continue
            self._keep(output, item)
            n_rows += item.n_rows
            if one.finish is not None:
                self._finish(one.seq_id, one.finish)
        return n_rows

    def end(self, ended: Sequence[SeqEnd]) -> None:
        for seq_id, reason in ended:
            if seq_id in self._open:
                self._finish(seq_id, reason)

    def close(self) -> None:
        self._files.write()
        if self._files.problem:
            raise EngineError(f"SaveHiddenStatesDecodingConfig: {self._files.problem}; they are lost")

    def _keep(self, output: _Output, item: ResolvedWork) -> None:
        if item.start != len(output.tokens):
            raise EngineError(f"{item.work} starts at {item.start}, and {len(output.tokens)} states were kept")
        rows = slice(item.first_row, item.first_row + item.n_rows)
        *aux, last = (state[rows].clone() for state in self._taps.states)
        output.aux.append(torch.cat(aux, 1))
        output.last.append(last)
        output.tokens += self._slots.history[item.work.slot, item.start : item.end].tolist()

    def _finish(self, seq_id: int, reason: FinishReason) -> None:
        output = self._open.pop(seq_id)
        if reason in _WHOLE:
            self._files.add(output.record(self._layers))
