"""Runs a model on batches gathered by hand, over a paged cache that is full of NaN where nothing is written."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from headrace.cache.groups import group_layers
from headrace.core.plan import BLOCK_TOKENS
from headrace.layers.base import BuildContext
from headrace.models.base import Model
from headrace.models.registry import build_model
from headrace.models.windows import narrow
from headrace.ops.batch import Batch, GroupBatch
from headrace.ops.blocks import block_layout
from headrace.ops.table import Ops, select_ops
from headrace.weights.checkpoint import open_checkpoint


@dataclass(frozen=True, slots=True)
class Output:
    """What a run gives for one prompt."""

    prompt_logprobs: tuple[float, ...]
    """Of prompt tokens 1, 2, ... given those before."""
    tokens: tuple[int, ...]
    """Greedy continuation."""


class Run(Protocol):
    """One way to run a checkpoint."""

    def run(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Output]: ...


@dataclass(slots=True)
class _Sequence:
    tokens: list[int]
    n_prompt: int
    tables: list[list[int]]
    computed: int = 0
    logprobs: list[float] = field(default_factory=list)

    def take(self, n_rows: int) -> range:
        return range(self.computed, min(self.computed + n_rows, len(self.tokens)))


def load(folder: Path, ctx: BuildContext) -> Model:
    checkpoint = open_checkpoint(folder)
    model = build_model(checkpoint.config(), ctx)
    model.load(checkpoint)
    checkpoint.close()
    return model


class ModelRun:
    """Rows of all sequences together, ``chunk`` rows of each a step (None: all there are); decodes row by row.

    Blocks are handed out in random order, one at a time, so that the blocks of a sequence are anywhere. Table columns
    before a window point at a block of NaN.
    """

    def __init__(
        self,
        folder: Path,
        *,
        chunk: int | None = None,
        together: bool = True,
        max_seq_len: int | None = None,
        dtype: torch.dtype = torch.float32,
        windows: Sequence[int] | None = None,
    ) -> None:
        self.ops: Ops = select_ops("cpu", dtype)
        self.dtype = dtype
        self.model = load(folder, BuildContext(ops=self.ops, dtype=dtype, max_seq_len=max_seq_len))
        if windows is not None:
            narrow(self.model.cached_layers(), windows, self.model.max_positions)
        self.groups = group_layers(self.model.cache_specs())
        self.chunk = chunk or 1 << 30
        self.together = together
        self._random = random.Random(7)

    def run(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Output]:
        batches = [list(prompts)] if self.together else [[prompt] for prompt in prompts]
        with torch.inference_mode():
            return [output for batch in batches for output in self._run(batch, max_tokens)]

    def logprobs(self, prompt: Sequence[int]) -> torch.Tensor:
        """[T, vocab_size] fp32: log probabilities after each token of the prompt, all rows in one step."""
        sequences, free = self._start([prompt], 0)
        with torch.inference_mode():
            return self.model.logits(self.model.forward(self._gather(sequences, free))).log_softmax(-1)

    def _run(self, prompts: list[Sequence[int]], max_tokens: int) -> list[Output]:
        sequences, free = self._start(prompts, max_tokens)
        while running := [s for s in sequences if len(s.tokens) < s.n_prompt + max_tokens]:
            self._step(running, free)
        return [Output(tuple(s.logprobs), tuple(s.tokens[s.n_prompt :])) for s in sequences]

    def _start(self, prompts: list[Sequence[int]], max_tokens: int) -> tuple[list[_Sequence], list[list[int]]]:
        """Sequences with nothing computed, and the free blocks of each group of a new cache."""
        n_blocks = 1 + sum((len(prompt) + max_tokens) // BLOCK_TOKENS + 1 for prompt in prompts)
        views = []
        for group in self.groups:
            numbers, dtype = block_layout(group.spec, self.dtype)
            views.append(torch.full((n_blocks, len(group.layers), numbers), torch.nan, dtype=dtype))
        self.model.bind_cache([group.layers for group in self.groups], views)
        free = [self._random.sample(range(1, n_blocks), n_blocks - 1) for _ in self.groups]
        return [_Sequence(list(prompt), len(prompt), [[] for _ in self.groups]) for prompt in prompts], free

    def _step(self, running: list[_Sequence], free: list[list[int]]) -> None:
        batch = self._gather(running, free)
        hidden = self.model.forward(batch)
        logprobs = self.model.logits(hidden).log_softmax(-1)
        for sequence, first in zip(running, batch.query_starts.tolist(), strict=False):
            rows = sequence.take(self.chunk)
            for row, position in enumerate(rows):
                if position + 1 < sequence.n_prompt:
                    sequence.logprobs.append(logprobs[first + row, sequence.tokens[position + 1]].item())
            sequence.computed = rows.stop
            if rows.stop == len(sequence.tokens):
                sequence.tokens.append(int(logprobs[first + len(rows) - 1].argmax()))

    def _gather(self, running: list[_Sequence], free: list[list[int]]) -> Batch:
        rows = [sequence.take(self.chunk) for sequence in running]
        columns = -(-max(r.stop for r in rows) // BLOCK_TOKENS)
        groups = []
        for index, group in enumerate(self.groups):
            table = torch.zeros(len(running), columns, dtype=torch.int32)
            for line, (sequence, taken) in enumerate(zip(running, rows, strict=True)):
                mine = sequence.tables[index]
                mine += [free[index].pop() for _ in range(-(-taken.stop // BLOCK_TOKENS) - len(mine))]
                table[line, : len(mine)] = torch.tensor(mine)
                table[line, : group.spec.needed_from(taken.start) // BLOCK_TOKENS] = 0
            where = [
                sequence.tables[index][p // BLOCK_TOKENS] * BLOCK_TOKENS + p % BLOCK_TOKENS
                for sequence, taken in zip(running, rows, strict=True)
                for p in taken
            ]
            groups.append(GroupBatch(table, torch.tensor(where)))
        batch = Batch(
            input_ids=torch.tensor([s.tokens[p] for s, taken in zip(running, rows, strict=True) for p in taken]),
            positions=torch.tensor([p for taken in rows for p in taken]),
            query_starts=torch.tensor([0] + [len(taken) for taken in rows]).cumsum(0),
            seq_lens=torch.tensor([taken.stop for taken in rows]),
            groups=tuple(groups),
        )
        for index, group in enumerate(self.groups):
            batch.groups[index].metadata = self.ops.plan(batch, index, group.spec)
        return batch
