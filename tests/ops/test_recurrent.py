"""Recurrences: native against the reference, and a row's bits whatever the company, the cut and the drafts."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.plan import BLOCK_TOKENS
from headrace.ops.batch import Batch, GroupBatch
from headrace.ops.native import core
from headrace.ops.recurrent import RecurrentOps, RecurrentShape, RecurrentWeights, accepted_rows, step_rows
from headrace.ops.reference.recurrent import RECURRENT as REFERENCE

NEEDS_CORE = pytest.mark.skipif(not core.is_available(), reason=f"no native core: {core.reason()}")
KINDS = ("gated_delta", "mamba2")


def native() -> RecurrentOps:
    from headrace.ops.native.recurrent import RECURRENT

    return RECURRENT


@pytest.fixture(autouse=True)
def two_threads():
    if not core.is_available():
        yield
        return
    before = core.native().threads()
    core.set_threads(2)
    yield
    core.set_threads(before)


@dataclass
class Layer:
    """A recurrence with random weights, and the inputs of some sequences."""

    kind: str
    shape: RecurrentShape
    weights: RecurrentWeights
    inputs: list[torch.Tensor]
    """Of each sequence: [length, n_in]."""


def make(kind: str, shape: RecurrentShape, lengths: list[int], dtype: torch.dtype, seed: int = 0) -> Layer:
    rng = torch.Generator().manual_seed(seed)

    def noise(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=rng)

    delta = kind == "gated_delta"
    width = shape.n_units * (shape.channels + shape.heads * shape.cols + 2 * shape.heads)
    if not delta:
        width = 2 * shape.n_out + 2 * shape.n_units * shape.rows + shape.n_heads
    weights = RecurrentWeights(
        conv=0.5 * noise(shape.n_units, shape.taps, shape.channels),
        conv_bias=None if delta else noise(shape.n_units, shape.channels),
        decay=-noise(shape.n_heads).exp(),
        dt_bias=noise(shape.n_heads) - 2.0,
        norm=noise(shape.cols if delta else shape.n_out),
        eps=1e-5,
        skip=None if delta else noise(shape.n_heads),
        dt_limit=(0.0, float("inf")) if delta else (0.01, 0.4),
    )
    return Layer(kind, shape, weights, [noise(length, width).to(dtype) for length in lengths])


class Run:
    """A layer over a cache of its own: blocks anywhere, NaN where nothing was written."""

    def __init__(self, ops: RecurrentOps, layer: Layer, seed: int = 0) -> None:
        self.ops, self.layer = ops, layer
        self.counts = [1 + (len(x) + 8) // BLOCK_TOKENS for x in layer.inputs]
        numbers = random.Random(seed).sample(range(1, 1 + sum(self.counts)), sum(self.counts))
        self.tables = [[numbers.pop() for _ in range(count)] for count in self.counts]
        # Blocks are further apart than they are long, as those of one layer among several.
        self.states = torch.full((1 + sum(self.counts), layer.shape.n_floats + 48), torch.nan)[:, :-48]
        self.drafts = torch.full((64, layer.inputs[0].shape[1]), torch.nan, dtype=layer.inputs[0].dtype)
        self.done = [0] * len(layer.inputs)
        self.results: list[list[torch.Tensor]] = [[] for _ in layer.inputs]

    def step(self, parts: list[tuple[int, int, torch.Tensor]]) -> None:
        """Rows of some sequences: (sequence, known rows, inputs of drafts). Drafts that equal the sequence's own next
        inputs count as right, up to the first that does not."""
        columns = max(self.counts)
        table = torch.tensor(
            [self.tables[s] + [0] * (columns - self.counts[s]) for s, _, _ in parts], dtype=torch.int32
        )
        rows = [torch.cat([self.layer.inputs[s][self.done[s] : self.done[s] + n], drafts]) for s, n, drafts in parts]
        batch = Batch(
            input_ids=torch.zeros(0),
            positions=torch.zeros(0),
            query_starts=torch.tensor([0] + [len(one) for one in rows]).cumsum(0),
            seq_lens=torch.tensor([self.done[s] + len(one) for (s, _, _), one in zip(parts, rows, strict=True)]),
            groups=(GroupBatch(table, torch.zeros(0)),),
            draft_counts=torch.tensor([len(drafts) for _, _, drafts in parts]),
        )
        run = getattr(self.ops, self.layer.kind)
        plan = self.ops.plan(step_rows(batch, 0))
        y = run(torch.cat(rows), self.states, self.drafts, plan, self.layer.shape, self.layer.weights)
        accepted = []
        for (s, n, drafts), mine in zip(parts, y.split([len(one) for one in rows]), strict=True):
            own = self.layer.inputs[s][self.done[s] + n :]
            right = [torch.equal(a, b) for a, b in zip(drafts, own, strict=False)]
            accepted.append(right.index(False) if False in right else len(right))
            self.results[s].append(mine[: n + accepted[-1]])
            self.done[s] += n + accepted[-1]
        if any(accepted):
            plan = self.ops.plan(accepted_rows(batch, 0, torch.tensor(accepted)))
            self.ops.advance(self.layer.kind, self.drafts, self.states, plan, self.layer.shape, self.layer.weights)

    def whole(self) -> Run:
        """Every sequence alone and in one piece."""
        for s, x in enumerate(self.layer.inputs):
            self.step([(s, len(x), x[:0])])
        return self

    def pieces(self, rng: random.Random) -> Run:
        """Sequences together, in pieces of random size, with drafts of which some are right."""
        while left := [s for s, x in enumerate(self.layer.inputs) if self.done[s] < len(x)]:
            self.step([self._piece(s, rng) for s in left if rng.random() < 0.8] or [self._piece(left[0], rng)])
        return self

    def _piece(self, s: int, rng: random.Random) -> tuple[int, int, torch.Tensor]:
        x, at = self.layer.inputs[s], self.done[s]
        n = min(rng.choice((1, 1, 2, 5, 31, 40)), len(x) - at)
        drafts = x[at + n : at + n + rng.randrange(5)].clone()
        if len(drafts) and rng.random() < 0.6:
            drafts[rng.randrange(len(drafts))] += 1.0
        return s, n, drafts

    def output(self, s: int) -> torch.Tensor:
        return torch.cat(self.results[s])

    def checkpoints(self, s: int) -> torch.Tensor:
        """States at the ends of whole blocks, and the last one."""
        n = len(self.layer.inputs[s])
        used = [b for b in range(self.counts[s]) if b * BLOCK_TOKENS < n]
        return self.states[[self.tables[s][b] for b in used]]


shapes = st.builds(
    RecurrentShape, n_units=st.integers(1, 3), heads=st.integers(1, 3), rows=st.integers(1, 40),
    cols=st.integers(1, 70), taps=st.integers(1, 5),
)  # fmt: skip


@NEEDS_CORE
@pytest.mark.parametrize("kind", KINDS)
@given(shape=shapes, seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_native_is_near_the_reference(kind: str, shape: RecurrentShape, seed: int) -> None:
    layer = make(kind, shape, [1, 3, 50], torch.float32, seed)
    got, want = Run(native(), layer).whole(), Run(REFERENCE, layer).whole()
    for s in range(3):
        torch.testing.assert_close(got.output(s), want.output(s), rtol=2e-4, atol=2e-4)
        # What lies between the units' shares is no number of theirs.
        torch.testing.assert_close(got.checkpoints(s), want.checkpoints(s), rtol=1e-4, atol=1e-4)


@NEEDS_CORE
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_rows_are_rounded_once(kind: str) -> None:
    layer = make(kind, RecurrentShape(2, 2, 16, 24, 4), [70], torch.bfloat16)
    wide = Layer(kind, layer.shape, layer.weights, [x.float() for x in layer.inputs])
    got, want = Run(native(), layer).whole().output(0), Run(native(), wide).whole().output(0)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, want.bfloat16())


@pytest.mark.parametrize("ops", ["reference", pytest.param("native", marks=NEEDS_CORE)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_its_bits_in_any_company_and_cut_and_beside_any_drafts(
    kind: str, ops: str, dtype: torch.dtype
) -> None:
    table = REFERENCE if ops == "reference" else native()
    sizes = [(RecurrentShape(2, 2, 16, 24, 4), [1, 33, 100, 64]), (RecurrentShape(1, 3, 9, 70, 3), [65, 2, 40])]
    for turn, (shape, lengths) in enumerate(sizes if ops == "native" else sizes[:1]):
        layer = make(kind, shape, lengths, dtype, turn)
        alone = Run(table, layer).whole()
        for seed in range(8 if ops == "native" else 2):
            together = Run(table, layer, seed).pieces(random.Random(seed))
            for s in range(len(lengths)):
                assert torch.equal(together.output(s), alone.output(s))
                assert torch.equal(together.checkpoints(s), alone.checkpoints(s))


@NEEDS_CORE
def test_another_sequence_goes_on_from_a_checkpoint() -> None:
    layer = make("gated_delta", RecurrentShape(2, 2, 16, 24, 4), [100], torch.float32)
    first = Run(native(), layer).whole()
    second = Run(native(), layer, 5)
    second.states[second.tables[0][1]] = first.states[first.tables[0][1]]
    second.done[0] = 64
    second.step([(0, 36, layer.inputs[0][:0])])
    assert torch.equal(second.output(0), first.output(0)[64:])


@NEEDS_CORE
@pytest.mark.slow
def test_every_level_that_runs_here() -> None:
    others = [level for level in core.native().runnable_levels() if level != core.native().level()]
    for level in others:
        command = [sys.executable, "-m", "pytest", "-q", "-x", __file__, "-m", "not slow", "-p", "no:cacheprovider"]
        done = subprocess.run(
            command, env={**os.environ, "HEADRACE_ISA": level}, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{level}: {done.stdout[-2000:]}"
