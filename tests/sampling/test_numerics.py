"""exp, log and masses: accurate, monotone, and the same bits wherever a value stands."""

from __future__ import annotations

import numpy as np
import pytest
import sampling_reference as reference
import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace.sampling import numerics

BELOW_ZERO = st.floats(-100.0, 0.0, width=32)


def floats_between(low: float, high: float, step: int) -> torch.Tensor:
    """Every ``step``-th float32 from -low's bits to -high's (both negative), falling."""
    first, last = (np.float32(value).view(np.uint32) for value in (high, low))
    return torch.from_numpy(np.arange(first, last, step, dtype=np.uint32).view(np.float32).copy())


def test_exp_is_accurate_and_falls_with_its_argument() -> None:
    x = floats_between(-64.0, -1e-9, 997)
    y = numerics.exp_neg(x)
    exact = x.double().exp()
    assert ((y.double() - exact) / exact).abs().max() < 1.5 * 2.0**-24
    assert (y.diff() <= 0).all()


@pytest.mark.parametrize("start", [-1e-6, -0.3465736, -0.34657365, -1.0397208, -2.7725887, -20.0, -27.0])
def test_exp_falls_over_neighbouring_floats(start: float) -> None:
    x = floats_between(start * 1.02, start, 1)[: 1 << 18]
    assert (numerics.exp_neg(x).diff() <= 0).all()


def test_exp_at_the_ends() -> None:
    x = torch.tensor([0.0, -0.0, -64.0, -100.0, -torch.inf])
    at_floor = numerics.exp_neg(torch.tensor([-64.0])).item()
    assert numerics.exp_neg(x).tolist() == [1.0, 1.0, at_floor, at_floor, at_floor]
    assert numerics.masses(x).tolist() == [1 << 40, 1 << 40, 0, 0, 0]


def test_exp_leaves_its_argument_alone() -> None:
    x = torch.tensor([-1.0, -70.0])
    numerics.exp_neg(x)
    assert x.tolist() == [-1.0, -70.0]


@pytest.mark.parametrize("scale", [1.0, 1e-300, 1e300, 2.0**40])
def test_log_is_accurate(scale: float) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(100_000, dtype=torch.float64, generator=generator) * scale + torch.finfo(torch.float64).tiny
    exact = np.log(x.numpy().astype(np.longdouble))
    error = np.abs((numerics.log(x).numpy() - exact) / exact)
    assert error.max() < 2.0**-52


def test_log_near_one_keeps_relative_accuracy() -> None:
    u = (2 * (2**32 - 1 - torch.arange(100_000)) + 1).to(torch.float64) * 2.0**-33
    exact = np.log(u.numpy().astype(np.longdouble))
    assert np.abs((numerics.log(u).numpy() - exact) / exact).max() < 2.0**-52
    assert numerics.log(torch.ones(1, dtype=torch.float64)).item() == 0.0


@given(st.lists(BELOW_ZERO, min_size=1, max_size=70))
def test_bits_equal_the_reference(values: list[float]) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    assert numerics.exp_neg(x).numpy().tobytes() == reference.exp(x.numpy()).tobytes()
    positive = -x.double() + 1e-300
    assert numerics.log(positive).tolist() == [reference.log(value) for value in positive.tolist()]


@pytest.mark.parametrize("function", [numerics.exp_neg, numerics.masses, lambda x: numerics.log(-x.double())])
def test_a_value_gives_the_same_bits_wherever_it_stands(function) -> None:
    generator = torch.Generator().manual_seed(2)
    x = -40 * torch.rand(5, 131, generator=generator) - 1e-3
    whole = function(x)
    for row in range(5):
        assert torch.equal(whole[row], function(x[row]))
        assert torch.equal(whole[row], torch.cat([function(value.reshape(1)) for value in x[row]]))
    assert torch.equal(whole.t(), function(x.t()))  # strided
    assert torch.equal(whole[:, 3::7], function(x[:, 3::7]))
    assert torch.equal(whole[:, 1:], function(x[:, 1:]))  # other vector lanes, other tail


@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=200), st.randoms(use_true_random=False))
def test_log_softmax_does_not_depend_on_order(values: list[float], random) -> None:
    order = list(range(len(values)))
    random.shuffle(order)
    x = torch.tensor(values, dtype=torch.float32)
    assert torch.equal(numerics.log_softmax_fixed(x[order]), numerics.log_softmax_fixed(x)[order])


@pytest.mark.parametrize(("n", "scale"), [(2, 1.0), (320, 5.0), (49152, 0.01), (131072, 3.0)])
def test_log_softmax_is_accurate(n: int, scale: float) -> None:
    x = torch.randn(3, n, generator=torch.Generator().manual_seed(3)) * scale
    exact = torch.log_softmax(x.double(), -1)
    assert (numerics.log_softmax_fixed(x) - exact).abs().max() < 1e-6


def test_log_softmax_with_forbidden_tokens() -> None:
    x = torch.tensor([[-torch.inf, 2.0, -torch.inf, 2.0], [5.0, -torch.inf, -torch.inf, -torch.inf]])
    halves = -np.log(2.0)
    assert numerics.log_softmax_fixed(x)[0].tolist() == pytest.approx([-np.inf, halves, -np.inf, halves])
    assert numerics.log_softmax_fixed(x)[1].tolist() == [0.0, -np.inf, -np.inf, -np.inf]


def test_argmax_takes_the_lowest_id_and_the_first_nan() -> None:
    x = torch.tensor([[1.0, 3.0, 3.0, 0.0], [-torch.inf] * 4, [0.0, torch.nan, 9.0, torch.nan], [-0.0, 0.0, -1, 0]])
    assert numerics.argmax_lowest(x).tolist() == [1, 0, 1, 0]
