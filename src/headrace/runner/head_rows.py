"""Rows of a draft head: what it makes of states that lie beside tokens, and the drafts that are drawn from that."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from headrace.core.plan import SlotInit
from headrace.ops.table import Ops
from headrace.sampling import Sampler, SampleRows

from .graph import Graphs
from .head_keys import HeadKeys
from .slots import SlotTable


@dataclass(frozen=True, slots=True)
class Pass:
    """A way to run a head."""

    head: Any
    """An ``Eagle3Head`` or an ``MtpHead``."""
    graphs: Graphs
    ahead: int = 1
    """The token beside row t is that at position t + ``ahead``."""


class HeadRows:
    """Runs heads over rows of slots, and draws.

    Args:
        sampler: its own, over the target's vocabulary; that of the target holds the same options.
        keys: where its keys and values lie.
        token_ids: [draft vocab] int64: draft tokens in the target's vocabulary.
    """

    def __init__(
        self,
        sampler: Sampler,
        vocab_size: int,
        token_ids: torch.Tensor,
        ops: Ops,
        keys: HeadKeys,
        slots: SlotTable,
        device: torch.device,
    ) -> None:
        self._sampler, self._token_ids, self._ops = sampler, token_ids.to(device), ops
        self.keys, self.slots, self.device = keys, slots, device
        self._is_reduced = not torch.equal(token_ids, torch.arange(vocab_size))
        self._logits = torch.full((slots.n_slots, vocab_size), float("-inf"), device=device)
        """Of drafts, over the target's vocabulary; columns of tokens that cannot be drafted stay as they are."""

    def bind(self, init: SlotInit) -> None:
        # Logprobs are the target's to tell.
        quiet = init.sampling.model_copy(update={"logprobs": None, "prompt_logprobs": None})
        self._sampler.bind(dataclasses.replace(init, sampling=quiet))
        self.keys.bind(init)

    def release(self, slot: int) -> None:
        self._sampler.release(slot)
        self.keys.release(slot)

    def run(
        self,
        how: Pass,
        slots: np.ndarray,
        starts: np.ndarray,
        counts: np.ndarray,
        states: torch.Tensor,
        wanted: np.ndarray,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs ``counts[i]`` rows of ``slots[i]`` from ``starts[i]`` on, each beside its token: logits over the draft
        vocabulary of the rows ``wanted``, and the head's own states of all rows. Good until the next run."""
        batch, positions = self.keys.batch(slots, starts, counts)
        following = self.slots.history[np.repeat(slots, counts), positions + how.ahead].astype(np.int64)
        batch.input_ids, batch.states = torch.from_numpy(following).to(self.device), states
        rows, head = torch.from_numpy(wanted), how.head
        logits = how.graphs.logits(batch, Counter())
        if logits is not None:
            # Every draft waits for this: rows that are all wanted are not copied.
            return logits if len(rows) == len(logits) else logits.index_select(0, rows), head.taps.states[0]
        for index, (group, part) in enumerate(zip(self.keys.groups, batch.groups, strict=True)):
            part.metadata = self._ops.plan(batch, index, group.spec)
        hidden = head.forward(batch)
        return head.logits(hidden[rows]), head.taps.states[0]

    def draw(self, slots: np.ndarray, logits: torch.Tensor, length: int) -> np.ndarray:
        """The tokens after ``length`` drafts: int64 [len(slots)], ``NO_TOKEN`` where none could be drawn."""
        if self._is_reduced:
            ids = self._token_ids.expand(len(slots), -1)
            logits = self._logits[: len(slots)].scatter_(1, ids, logits)
        known = self.slots.known

        def history(slot: int) -> np.ndarray:
            return self.slots.history[slot, : known[slot] + length]

        return self._sampler.sample(SampleRows.one_each(slots, known[slots] + length, history), logits).tokens
