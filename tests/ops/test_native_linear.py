"""Packed weights: products, look-ups and packing on the native core, at every level that runs here."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.errors import EngineError
from headrace.ops.native import core

if not core.is_available():
    pytest.skip(f"no native core: {core.reason()}", allow_module_level=True)

from headrace.ops.native.linear import LINEAR, PackedWeight

DTYPES = (torch.float32, torch.bfloat16)
CPU = torch.device("cpu")
dtypes = st.sampled_from(DTYPES)


@pytest.fixture(autouse=True)
def two_threads():
    before = core.native().threads()
    core.set_threads(2)
    yield
    core.set_threads(before)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def packed(rows: torch.Tensor) -> PackedWeight:
    weight = LINEAR.empty(tuple(rows.shape), rows.dtype, CPU)
    LINEAR.fill(weight, 0, rows)
    return weight


def assert_near(y: torch.Tensor, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Against the sum in double. An fp32 sum of n terms is off by a few roundings of the sum of the terms' sizes: far
    less than n of them, since they have both signs. Then comes the rounding to the dtype of y."""
    exact = x.double() @ w.double().T
    size = x.double().abs() @ w.double().abs().T
    if bias is not None:
        exact, size = exact + bias.double(), size + bias.double().abs()
    allowed = 2e-6 * size + (2**-8 * exact.abs() if y.dtype == torch.bfloat16 else 0)
    assert ((y.double() - exact).abs() <= allowed).all()


@given(
    n_rows=st.integers(1, 40), n_out=st.integers(1, 150), n_in=st.integers(1, 200), dtype=dtypes, bias=st.booleans(),
    wide=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_products_are_those_of_double_precision(n_rows, n_out, n_in, dtype, bias, wide, seed):
    x, w = noise(n_rows, n_in, seed=seed, dtype=dtype), noise(n_out, n_in, seed=seed + 100, dtype=dtype)
    b = noise(n_out, seed=seed + 200, dtype=dtype) if bias else None
    y = LINEAR.apply(x, packed(w), b, dtype=torch.float32 if wide else None)
    assert (y.dtype, y.shape) == (torch.float32 if wide else dtype, (n_rows, n_out))
    assert_near(y, x, w, b)


@given(
    n_rows=st.integers(1, 70), n_out=st.integers(1, 200), n_in=st.integers(1, 100), quarters=st.booleans(),
    dtype=dtypes, seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_row_is_the_same_alone_in_any_company_and_on_any_number_of_threads(
    n_rows, n_out, n_in, quarters, dtype, seed
):
    n_in = n_in * 8 if quarters else n_in
    segments = 4 if quarters else 1
    x, weight = noise(n_rows, n_in, seed=seed, dtype=dtype), packed(noise(n_out, n_in, seed=seed + 1, dtype=dtype))
    b = noise(n_out, seed=seed + 2, dtype=dtype)
    together = LINEAR.apply(x, weight, b, segments=segments, dtype=torch.float32)
    core.set_threads(1)
    assert torch.equal(together, LINEAR.apply(x, weight, b, segments=segments, dtype=torch.float32))
    core.set_threads(2)
    alone = torch.cat(
        [LINEAR.apply(x[i : i + 1], weight, b, segments=segments, dtype=torch.float32) for i in range(n_rows)]
    )
    assert torch.equal(together, alone)
    order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(together[order], LINEAR.apply(x[order], weight, b, segments=segments, dtype=torch.float32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_rows", [1, 7, 65, 300])
def test_many_rows_and_panels_are_cut_without_a_trace(n_rows, dtype):
    x, w = noise(n_rows, 3072, dtype=dtype), noise(1000, 3072, seed=1, dtype=dtype)
    weight = packed(w)
    y = LINEAR.apply(x, weight, None, segments=4)
    assert_near(y, x, w, None)
    for i in {0, n_rows // 2, n_rows - 1}:
        assert torch.equal(y[i : i + 1], LINEAR.apply(x[i : i + 1], weight, None, segments=4))


@given(quarter=st.integers(1, 40), n_out=st.integers(1, 70), n_rows=st.integers(1, 20), dtype=dtypes)
@settings(max_examples=40, deadline=None)
def test_four_segments_are_four_ranks(quarter, n_out, n_rows, dtype):
    """What ranks with a quarter of the columns each compute, added as a tree, is what one computes."""
    width = 2 * quarter
    x, w = noise(n_rows, 4 * width, dtype=dtype), noise(n_out, 4 * width, seed=1, dtype=dtype)
    whole = LINEAR.apply(x, packed(w), None, segments=4, dtype=torch.float32)
    parts = [
        LINEAR.apply(x[:, i * width : (i + 1) * width], packed(w[:, i * width : (i + 1) * width].contiguous()), None,
                     dtype=torch.float32)
        for i in range(4)
    ]  # fmt: skip
    assert torch.equal(whole, (parts[0] + parts[1]) + (parts[2] + parts[3]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_x_may_be_any_distance_apart(dtype):
    big, weight = noise(9, 50, dtype=dtype), packed(noise(33, 20, seed=1, dtype=dtype))
    for x in (big[:, 3:23], big[::2, 30:], big[4:5].expand(6, 50)[:, :20], big.T[:20, :].T):
        assert torch.equal(LINEAR.apply(x, weight, None), LINEAR.apply(x.contiguous(), weight, None))
    assert LINEAR.apply(big[:0, :20], weight, None).shape == (0, 33)


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinities_and_nan_stay_in_their_row(dtype):
    w = noise(40, 31, seed=1, dtype=dtype).abs()
    x = noise(4, 31, dtype=dtype).abs()
    clean = LINEAR.apply(x, packed(w), None)
    x[1, 30], x[2, 5] = torch.inf, torch.nan
    y = LINEAR.apply(x, packed(w), None)
    assert torch.equal(y[[0, 3]], clean[[0, 3]])
    assert (y[1] == torch.inf).all()
    assert y[2].isnan().all()


@given(heights=st.lists(st.integers(1, 50), min_size=1, max_size=5), n_in=st.integers(1, 90), dtype=dtypes)
@settings(max_examples=40, deadline=None)
def test_stacked_parts_fill_their_rows_and_no_others(heights, n_in, dtype):
    parts = [noise(height, n_in, seed=i, dtype=dtype) for i, height in enumerate(heights)]
    whole = torch.cat(parts)
    weight = LINEAR.empty(tuple(whole.shape), dtype, CPU)
    starts = [sum(heights[:i]) for i in range(len(heights))]
    for start, part in reversed(list(zip(starts, parts, strict=True))):
        LINEAR.fill(weight, start, part)
    assert torch.equal(LINEAR.embed(torch.arange(len(whole)), weight), whole)
    assert torch.equal(weight.memory, packed(whole).memory)
    assert weight.memory.nbytes == LINEAR.nbytes(tuple(whole.shape), dtype)


def test_rows_are_converted_to_the_weights_dtype():
    rows = noise(5, 6)
    weight = LINEAR.empty((5, 6), torch.bfloat16, CPU)
    LINEAR.fill(weight, 0, rows.T.contiguous().T)
    assert torch.equal(LINEAR.embed(torch.arange(5), weight), rows.bfloat16())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_in", [1, 12, 33])
def test_a_look_up_gives_the_rows_of_a_table_that_is_also_a_head(n_in, dtype):
    table = noise(101, n_in, dtype=dtype)
    weight = packed(table)
    ids = torch.tensor([100, 0, 31, 32, 33, 0, 64])
    assert torch.equal(LINEAR.embed(ids, weight), table[ids])
    assert torch.equal(LINEAR.embed(torch.stack((ids, ids), 1)[:, 0], weight), table[ids])
    x = noise(3, n_in, seed=1, dtype=dtype)
    assert_near(LINEAR.apply(x, weight, None, dtype=torch.float32), x, table, None)


def test_what_does_not_fit_is_refused():
    weight = packed(noise(5, 8))
    with pytest.raises(EngineError, match=r"x \(2, 7\) torch.float32 does not fit a weight of \[5, 8\]"):
        LINEAR.apply(noise(2, 7), weight, None)
    with pytest.raises(EngineError, match=r"torch\.bfloat16 does not fit"):
        LINEAR.apply(noise(2, 8, dtype=torch.bfloat16), weight, None)
    with pytest.raises(ValueError, match="segment"):
        LINEAR.apply(noise(2, 8), weight, None, segments=3)
    with pytest.raises(ValueError, match="multiple of 4"):
        LINEAR.apply(noise(2, 6), packed(noise(5, 6)), None, segments=4)
    with pytest.raises(EngineError, match="do not fit a weight"):
        LINEAR.fill(weight, 3, noise(3, 8))
    for wrong in (5, -1):
        with pytest.raises(IndexError):
            LINEAR.embed(torch.tensor([0, wrong]), weight)


@pytest.mark.parametrize("level", core.native().runnable_levels())
def test_every_level_passes(level):
    """The other levels: this file again in a process of its own."""
    if level == core.native().level():
        pytest.skip("this process runs it")
    if os.environ.get("HEADRACE_ISA"):
        pytest.skip("a level is forced from outside")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "HEADRACE_ISA": level}, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]


def test_a_timed_replay_does_the_jobs_and_names_them():
    from headrace.ops.native.elementwise import add
    from headrace.ops.native.record import Recorder

    x, weight = noise(3, 20), packed(noise(20, 20, seed=1))
    recorder = Recorder(3)
    with recorder.recording(3):
        y = add(x, LINEAR.apply(x, weight, None))
    before = y.clone()
    x.mul_(2.0)
    times = recorder.replay_timed(3)
    assert [kind for kind, _ in times] == ["Linear", "ElementwiseRows"]
    assert all(nanoseconds > 0 for _, nanoseconds in times)
    assert torch.equal(y, before * 2.0)
