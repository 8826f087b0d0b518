"""Weights in blocks: the reference against plain arithmetic, and the native core against the reference, to the bit."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.errors import EngineError
from headrace.ops.native import core
from headrace.ops.reference.block_linear import ReferenceBlockLinear, fma, round_rows
from headrace.ops.reference.block_linear import make as make_reference
from headrace.quant.formats import BlockFormat, BlockRows

CPU = torch.device("cpu")
WHOLE = [
    BlockFormat(bits, offset, group, has_minimum=minimum, has_wide_scales=wide)
    for bits, offset in ((4, 0), (4, 8), (8, 32), (8, 128))
    for group, wide in ((32, False), (32, True), (16, True))
    for minimum in (False, True)
]
FORMATS = (
    *WHOLE,
    BlockFormat(4, 0, has_wide_scales=True, codes="e2m1"),
    BlockFormat(4, 0, 16, has_wide_scales=True, codes="e2m1"),
    BlockFormat(8, 0, codes="e4m3"),
    BlockFormat(8, 0, has_wide_scales=True, codes="e4m3"),
)
formats = st.sampled_from(FORMATS)
dtypes = st.sampled_from((torch.float32, torch.bfloat16))
needs_core = pytest.mark.skipif(not core.is_available(), reason=f"no native core: {core.reason()}")


@pytest.fixture(autouse=True)
def two_threads():
    if core.is_available():
        before = core.native().threads()
        core.set_threads(2)
        yield
        core.set_threads(before)
    else:
        yield


def native(form: BlockFormat):
    from headrace.ops.native.block_linear import NativeBlockLinear

    return NativeBlockLinear(form)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rows_of(form: BlockFormat, n_out: int, n_in: int, seed: int = 0) -> BlockRows:
    """Any numbers and scales of either sign, among them the extremes."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(0, 1 << form.bits, (n_out, n_in), generator=generator, dtype=torch.uint8)
    numbers[0] = (1 << form.bits) - 1
    if form.codes == "e4m3":
        # What is not a number has no place in a weight.
        numbers[(numbers & 127) == 127] = 126
    numbers[-1, ::2] = 0
    scales = noise(n_out, form.groups(n_in), seed=seed + 1, dtype=form.scale_dtype)
    minima = noise(n_out, form.groups(n_in), seed=seed + 2, dtype=form.scale_dtype) if form.has_minimum else None
    return BlockRows(form, numbers, scales, minima)


def filled(ops, rows: BlockRows, dtype: torch.dtype):
    weight = ops.empty(tuple(rows.numbers.shape), dtype, CPU)
    ops.fill(weight, 0, rows)
    return weight


def apply(ops, rows: BlockRows, x: torch.Tensor, bias=None, **options) -> torch.Tensor:
    return ops.apply(x, filled(ops, rows, x.dtype), bias, **options)


@given(data=st.lists(st.tuples(*[st.floats(width=32, allow_nan=False, allow_infinity=False)] * 3), min_size=1))
def test_fma_rounds_once(data):
    from fractions import Fraction

    a, b, c = (torch.tensor(column, dtype=torch.float32) for column in zip(*data, strict=True))
    found = fma(a, b, c)
    for x, y, z, got in zip(*(part.tolist() for part in (a, b, c, found)), strict=True):
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        assert exact == 0 or _is_nearest(got, exact), (x, y, z, got)


def _is_nearest(got: float, exact) -> bool:
    from fractions import Fraction

    if not np.isfinite(got):
        return abs(exact) >= Fraction(float(np.finfo(np.float32).max))
    below, above = (float(np.nextafter(np.float32(got), np.float32(side))) for side in (-np.inf, np.inf))
    error = abs(Fraction(got) - exact)
    return all(not np.isfinite(other) or error <= abs(Fraction(other) - exact) for other in (below, above))


def test_activations_are_rounded_block_by_block():
    x = noise(5, 70)
    x[1, 32:64] = 0
    x[2, 64:] = 1e-35
    x[3, 10] = torch.inf
    x[4, 3] = 1e30
    rounded = round_rows(x)
    assert rounded.numbers.abs().max() == 127
    assert torch.equal(rounded.numbers, rounded.numbers.round())
    near = (rounded.numbers * rounded.scales.unsqueeze(2)).flatten(1)[:, :70]
    step = rounded.scales.repeat_interleave(32, 1)[:, :70]
    good = [0, 1, 2, 4]
    assert ((near - x)[good].abs() <= 0.5001 * step[good] + 1e-30).all()
    assert rounded.scales[3].isnan().tolist() == [True, False, False]
    assert rounded.scales[1, 1] == 0
    assert rounded.scales[2, 2] == 0


@given(
    form=formats, n_rows=st.integers(1, 6), n_out=st.integers(1, 40), n_in=st.integers(1, 130), dtype=dtypes,
    bias=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_the_reference_multiplies_rounded_activations_with_the_weights_values(
    form, n_rows, n_out, n_in, dtype, bias, seed
):
    x, rows = noise(n_rows, n_in, seed=seed, dtype=dtype), rows_of(form, n_out, n_in, seed)
    b = noise(n_out, seed=seed + 5, dtype=dtype) if bias else None
    rounded = round_rows(x)
    near = (rounded.numbers.double() * rounded.scales.double().unsqueeze(2)).flatten(1)[:, :n_in]
    if form.codes == "e4m3":
        near = x.double()
    values = rows.values().double()
    exact = near @ values.T + (0 if b is None else b.double())
    # Of a value with a minimum, both terms count.
    scale = rows.scales.double().abs().repeat_interleave(form.group, 1)[:, :n_in] * (1 << form.bits)
    size = near.abs() @ (values.abs() + scale).T + (0 if b is None else b.double().abs())
    y = apply(make_reference(((n_out, form),)), rows, x, b, dtype=torch.float32)
    assert ((y.double() - exact).abs() <= 2e-6 * size + 1e-6).all()


@needs_core
@given(
    form=formats, n_rows=st.integers(1, 40), n_out=st.integers(1, 100), n_in=st.integers(1, 200), dtype=dtypes,
    bias=st.booleans(), wide=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_native_products_have_the_bits_of_the_reference(form, n_rows, n_out, n_in, dtype, bias, wide, seed):
    x, rows = noise(n_rows, n_in, seed=seed, dtype=dtype), rows_of(form, n_out, n_in, seed)
    b = noise(n_out, seed=seed + 5, dtype=dtype) if bias else None
    wanted = torch.float32 if wide else None
    y = apply(native(form), rows, x, b, dtype=wanted)
    assert (y.dtype, y.shape) == (wanted or dtype, (n_rows, n_out))
    assert torch.equal(y, apply(ReferenceBlockLinear(form), rows, x, b, dtype=wanted))


@needs_core
@given(
    form=formats, n_rows=st.integers(1, 70), n_out=st.integers(1, 200), quarter=st.integers(1, 3), dtype=dtypes,
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_a_row_is_the_same_alone_in_any_company_and_on_any_number_of_threads(form, n_rows, n_out, quarter, dtype, seed):
    n_in, ops = quarter * 128, native(form)
    x, rows = noise(n_rows, n_in, seed=seed, dtype=dtype), rows_of(form, n_out, n_in)
    weight = filled(ops, rows, dtype)
    together = ops.apply(x, weight, None, segments=4)
    core.set_threads(1)
    assert torch.equal(together, ops.apply(x, weight, None, segments=4))
    core.set_threads(2)
    assert torch.equal(together, torch.cat([ops.apply(x[i : i + 1], weight, None, segments=4) for i in range(n_rows)]))

    def quarter_of(part: torch.Tensor, i: int) -> torch.Tensor:
        return part.unflatten(1, (4, -1))[:, i]

    parts = [apply(ops, rows.map(partial(quarter_of, i=i)), quarter_of(x, i), dtype=torch.float32) for i in range(4)]
    ranks = (parts[0] + parts[1]) + (parts[2] + parts[3])
    assert torch.equal(together, ranks.to(dtype))


@needs_core
@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("n_rows", [1, 65, 300])
def test_many_rows_and_panels_are_cut_without_a_trace(n_rows, form):
    x, rows, ops = noise(n_rows, 768), rows_of(form, 700, 768), native(form)
    weight = filled(ops, rows, x.dtype)
    y = ops.apply(x, weight, None, segments=4)
    few = sorted({0, n_rows // 2, n_rows - 1})
    assert torch.equal(y[few], apply(ReferenceBlockLinear(form), rows, x[few], segments=4))


@needs_core
def test_segments_that_would_split_a_block_are_one_sum():
    form, x = FORMATS[0], noise(3, 96)
    rows = rows_of(form, 9, 96)
    assert torch.equal(apply(native(form), rows, x, segments=4), apply(native(form), rows, x))


@needs_core
def test_rows_of_x_and_of_the_result_may_be_any_distance_apart():
    form, big = FORMATS[2], noise(9, 50)
    rows, ops = rows_of(form, 33, 20), native(form)
    weight = filled(ops, rows, big.dtype)
    for x in (big[:, 3:23], big[::2, 30:], big[4:5].expand(6, 50)[:, :20], big.T[:20, :].T):
        assert torch.equal(ops.apply(x, weight, None), ops.apply(x.contiguous(), weight, None))
    assert ops.apply(big[:0, :20], weight, None).shape == (0, 33)
    wide = torch.zeros(9, 60)
    ops.apply(big[:, :20], weight, None, out=wide[:, 5:38])
    assert torch.equal(wide[:, 5:38], ops.apply(big[:, :20], weight, None))
    assert not wide[:, :5].any()
    assert not wide[:, 38:].any()


@pytest.mark.parametrize("make_ops", [pytest.param(native, marks=needs_core), ReferenceBlockLinear])
def test_what_is_not_finite_stays_in_its_row(make_ops):
    form = FORMATS[0]
    x, rows, ops = noise(4, 70), rows_of(form, 40, 70), make_ops(form)
    clean = apply(ops, rows, x)
    x[1, 69], x[2, 5] = torch.inf, torch.nan
    y = apply(ops, rows, x)
    assert torch.equal(y[[0, 3]], clean[[0, 3]])
    assert y[1:3].isnan().all()


@pytest.mark.parametrize("make_ops", [pytest.param(native, marks=needs_core), ReferenceBlockLinear])
@given(
    form=formats, heights=st.lists(st.integers(1, 50), min_size=1, max_size=4), n_in=st.integers(1, 90), dtype=dtypes
)
@settings(max_examples=40, deadline=None)
def test_a_look_up_gives_the_values_of_rows_filled_in_any_order(make_ops, form, heights, n_in, dtype):
    parts = [rows_of(form, height, n_in, seed=i) for i, height in enumerate(heights)]
    ops, n_out = make_ops(form), sum(heights)
    weight = ops.empty((n_out, n_in), dtype, CPU)
    starts = [sum(heights[:i]) for i in range(len(heights))]
    for start, part in reversed(list(zip(starts, parts, strict=True))):
        ops.fill(weight, start, part)
    ids = torch.arange(n_out).flip(0)
    assert torch.equal(ops.embed(ids, weight), torch.cat([part.values() for part in parts]).to(dtype)[ids])


@needs_core
def test_what_does_not_fit_is_refused():
    form = FORMATS[0]
    ops, rows = native(form), rows_of(form, 5, 8)
    weight = filled(ops, rows, torch.float32)
    with pytest.raises(EngineError, match=r"x \(2, 7\) torch.float32 does not fit a weight of \[5, 8\]"):
        ops.apply(noise(2, 7), weight, None)
    with pytest.raises(EngineError, match=r"torch\.bfloat16 does not fit"):
        ops.apply(noise(2, 8, dtype=torch.bfloat16), weight, None)
    with pytest.raises(EngineError, match="do not fit a weight"):
        ops.fill(weight, 3, rows_of(form, 3, 8))
    with pytest.raises(EngineError, match=r"rows \[5, 8\] of 4 bits in groups of 32 with minima"):
        ops.fill(weight, 0, rows_of(FORMATS[1], 5, 8))
    for wrong in (5, -1):
        with pytest.raises(IndexError):
            ops.embed(torch.tensor([0, wrong]), weight)
    with pytest.raises(ValueError, match="no kernels"):
        native(BlockFormat(5, 0))


@pytest.mark.parametrize("name", ["reference", pytest.param("native", marks=needs_core)])
def test_weights_of_several_formats_lie_on_top_of_one_another(name):
    from headrace.ops.table import select_ops

    make = select_ops("cpu", torch.float32, name).block_linear
    parts = [(40, FORMATS[0]), (7, FORMATS[5]), (33, FORMATS[13])]
    ops, rows = make(tuple(parts)), [rows_of(form, n, 128, seed=n) for n, form in parts]
    weight = ops.empty((80, 128), torch.float32, CPU)
    for first, part in zip((0, 40, 47), rows, strict=True):
        ops.fill(weight, first, part)
    x, bias = noise(6, 128), noise(80, seed=9)
    apart = [
        apply(make(((n, form),)), part, x, bias[first : first + n], segments=4)
        for (n, form), part, first in zip(parts, rows, (0, 40, 47), strict=True)
    ]
    assert torch.equal(ops.apply(x, weight, bias, segments=4), torch.cat(apart, 1))
    assert ops.nbytes((80, 128), torch.float32) == sum(make((p,)).nbytes((p[0], 128), torch.float32) for p in parts)
