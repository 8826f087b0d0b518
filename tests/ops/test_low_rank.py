"""Low-rank additions: the reference against the formula in fp64, the native core beside it, row by row."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.errors import EngineError
from headrace.ops.low_rank import LowRankPart
from headrace.ops.native import core
from headrace.ops.reference.low_rank import LOW_RANK as REFERENCE

IMPLEMENTATIONS: dict[str, Any] = {"reference": REFERENCE}
if core.is_available():
    from headrace.ops.native.low_rank import LOW_RANK as NATIVE
    from headrace.ops.native.record import Recorder

    IMPLEMENTATIONS["native"] = NATIVE
needs_core = pytest.mark.skipif(not core.is_available(), reason=f"no native core: {core.reason()}")

F32, BF16 = torch.float32, torch.bfloat16
TOLERANCE = {F32: 2e-6, BF16: 2e-2}
"""Of the size of the terms; in bf16 A x and y are rounded."""


def noise(*shape: int, seed: int, dtype: torch.dtype = F32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Map:
    """A linear map of three parts with some adapters, each of which changes other parts at other ranks."""

    def __init__(
        self, ops: Any, dtype: torch.dtype, n_in: int, heights: list[int], ranks: list[int], seed: int
    ) -> None:
        self.ops, self.dtype, self.n_in, self.n_out = ops, dtype, n_in, sum(heights)
        self.table = ops.table(len(ranks) + 1, n_in, self.n_out, dtype)
        self.adapters: list[list[LowRankPart]] = []
        for number, rank in enumerate(ranks):
            parts = []
            for place, height in enumerate(heights):
                if (number + place) % 3 != 2:
                    this = seed + 100 * number + 10 * place
                    a = noise(rank + place, n_in, seed=this, dtype=dtype) * n_in**-0.5
                    b = noise(height, rank + place, seed=this + 1, dtype=dtype)
                    parts.append(LowRankPart(a, b, sum(heights[:place]), 0.5 + number))
            self.adapters.append(parts)
            if parts:
                ops.put(self.table, number, parts)

    def add(self, x: torch.Tensor, y: torch.Tensor, adapters: list[int]) -> torch.Tensor:
        result = y.clone()
        self.ops.add(x, result, torch.tensor(adapters, dtype=torch.int32), self.table)
        return result

    def exact(self, x: torch.Tensor, y: torch.Tensor, adapters: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """In fp64, and the size of the terms."""
        result, size = y.double().clone(), y.double().abs()
        for row, number in enumerate(adapters):
            for part in self.adapters[number] if 0 <= number < len(self.adapters) else ():
                places = slice(part.first, part.first + part.b.shape[0])
                u = (part.a.double() @ x[row].double()).to(self.dtype).double()
                result[row, places] += part.scale * (part.b.double() @ u)
                size[row, places] += part.scale * (
                    part.b.double().abs() @ (part.a.double().abs() @ x[row].double().abs())
                )
        return result, size


maps = st.tuples(
    st.integers(1, 90), st.lists(st.integers(1, 70), min_size=1, max_size=3), st.lists(st.integers(1, 40), max_size=3)
)
dtypes = st.sampled_from([F32, BF16])


@pytest.mark.parametrize("how", IMPLEMENTATIONS)
@given(shape=maps, n_rows=st.integers(1, 40), dtype=dtypes, seed=st.integers(0, 99), data=st.data())
@settings(max_examples=60, deadline=None)
def test_it_is_the_formula(how, shape, n_rows, dtype, seed, data):
    n_in, heights, ranks = shape
    made = Map(IMPLEMENTATIONS[how], dtype, n_in, heights, ranks, seed)
    adapters = data.draw(st.lists(st.integers(-1, len(ranks)), min_size=n_rows, max_size=n_rows))
    x, y = noise(n_rows, n_in, seed=seed, dtype=dtype), noise(n_rows, made.n_out, seed=seed + 1, dtype=dtype)
    got = made.add(x, y, adapters)
    want, size = made.exact(x, y, adapters)
    assert ((got.double() - want).abs() <= TOLERANCE[dtype] * size).all()
    idle = [row for row, number in enumerate(adapters) if not 0 <= number < len(ranks)]
    assert torch.equal(got[idle], y[idle])


@needs_core
@given(shape=maps, n_rows=st.integers(1, 60), dtype=dtypes, seed=st.integers(0, 99), data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_row_is_the_same_alone_in_any_company_and_under_any_number(shape, n_rows, dtype, seed, data):
    n_in, heights, ranks = shape
    made = Map(NATIVE, dtype, n_in, heights, ranks, seed)
    adapters = data.draw(st.lists(st.integers(-1, len(ranks)), min_size=n_rows, max_size=n_rows))
    x, y = noise(n_rows, n_in, seed=seed, dtype=dtype), noise(n_rows, made.n_out, seed=seed + 1, dtype=dtype)
    together = made.add(x, y, adapters)
    core.set_threads(1)
    assert torch.equal(together, made.add(x, y, adapters))
    core.set_threads(2)
    alone = [made.add(x[row : row + 1], y[row : row + 1], [number]) for row, number in enumerate(adapters)]
    assert torch.equal(together, torch.cat(alone))
    # The last number is free: what goes there gives the same.
    if ranks and made.adapters[0]:
        NATIVE.put(made.table, len(ranks), made.adapters[0])
        NATIVE.clear(made.table, 0)
        moved = [len(ranks) if number == 0 else -1 if number == len(ranks) else number for number in adapters]
        assert torch.equal(together, made.add(x, y, moved))


@needs_core
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_many_rows_are_cut_without_a_trace(dtype):
    n_rows, n_in = 700, 1024
    made = Map(NATIVE, dtype, n_in, [2000, 100, 333], [16, 64, 5], 0)
    adapters = [(row * 7 // 5) % 5 - 1 for row in range(n_rows)]
    x, y = noise(n_rows, n_in, seed=1, dtype=dtype), noise(n_rows, made.n_out, seed=2, dtype=dtype)
    got = made.add(x, y, adapters)
    want, size = made.exact(x, y, adapters)
    assert ((got.double() - want).abs() <= TOLERANCE[dtype] * size).all()
    for row in (0, 1, 2, 3, 4, 350, 698, 699):
        assert torch.equal(got[row], made.add(x[row : row + 1], y[row : row + 1], adapters[row : row + 1])[0])


@needs_core
def test_a_recorded_addition_reads_its_rows_and_adapters_anew():
    made = Map(NATIVE, F32, 20, [30], [3, 5], 0)
    adapters = torch.tensor([0, -1, 1, 0], dtype=torch.int32)
    x, y = noise(4, 20, seed=1), noise(4, 30, seed=2)
    kept = y.clone()
    recorder = Recorder(4)
    with recorder.recording(4):
        NATIVE.add(x, kept, adapters, made.table)
    assert recorder.missed is None
    for now, n in (([1, 1, -1, 0], 4), ([-1, -1, -1, -1], 4), ([0, 1, 0, 0], 2)):
        adapters.copy_(torch.tensor(now, dtype=torch.int32))
        kept.copy_(y)
        recorder.replay(n)
        assert torch.equal(kept[:n], made.add(x[:n], y[:n], now[:n]))
        assert torch.equal(kept[n:], y[n:])
    NATIVE.clear(made.table, 0)
    kept.copy_(y)
    recorder.replay(4)
    assert torch.equal(kept, made.add(x, y, [-1, 1, -1, -1]))


@needs_core
def test_what_does_not_fit_is_refused():
    made = Map(NATIVE, F32, 20, [30], [3], 0)
    x, y = noise(2, 20, seed=1), noise(2, 30, seed=2)
    with pytest.raises(IndexError, match="none of the table"):
        made.add(x, y, [0, 2])
    with pytest.raises(EngineError, match="do not fit a map from 20 to 30"):
        made.add(x[:, :19], y, [0, 0])
    with pytest.raises(EngineError, match="as many adapters"):
        made.add(x, y, [0])
    wrong = LowRankPart(noise(2, 20, seed=3), noise(8, 2, seed=4), 25, 1.0)
    with pytest.raises(EngineError, match="from output 25 on do not fit"):
        NATIVE.put(made.table, 0, [wrong])


@pytest.mark.slow
@pytest.mark.parametrize("level", core.native().runnable_levels() if core.is_available() else [])
def test_every_level_passes(level):
    """The other levels: this file again in a process of its own."""
    if level == core.native().level():
        pytest.skip("this process runs it")
    if os.environ.get("HEADRACE_ISA"):
        pytest.skip("a level is forced from outside")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not reference", __file__],
        env={**os.environ, "HEADRACE_ISA": level}, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
