"""Rounding at load: how near it is, against plain arithmetic and the reference package."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from headrace.core.errors import CheckpointError
from headrace.quant.formats import INT4, INT8
from headrace.quant.rounding import to_int4, to_int8


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / 8


def error(rows: torch.Tensor, values: torch.Tensor) -> float:
    return (values - rows).square().mean().item()


@pytest.mark.parametrize(("rounding", "kind"), [(to_int8, "Q8_0"), (to_int4, "Q4_0")])
def test_it_is_no_worse_than_the_reference_package(rounding, kind):
    rows = noise(64, 1024)
    form = GGMLQuantizationType[kind]
    theirs = torch.from_numpy(quants.dequantize(quants.quantize(rows.numpy(), form), form))
    ours = rounding(rows).values()
    assert error(rows, ours) <= error(rows, theirs) * (1.01 if kind == "Q8_0" else 0.9)


def test_int8_is_within_half_a_step():
    rows = noise(20, 100)
    found = to_int8(rows)
    steps = found.scales.float().repeat_interleave(32, 1)[:, :100]
    # The scale is rounded to half precision before it is used, so that the largest value may be cut by that much.
    assert ((found.values() - rows).abs() <= 0.5001 * steps + 2**-11 * rows.abs()).all()


def test_int4_has_no_better_scale_nearby():
    rows = noise(4, 32, seed=3)
    found = to_int4(rows)
    best = (found.values() - rows).square().sum(1)
    for factor in np.linspace(0.7, 1.4, 71):
        scales = (found.scales.float() * factor).to(torch.float16).float()
        values = (rows / scales).round().clamp(-8, 7) * scales
        assert (best <= (values - rows).square().sum(1) * 1.2 + 1e-9).all(), factor


@pytest.mark.parametrize(("rounding", "form"), [(to_int8, INT8), (to_int4, INT4)])
def test_zeros_short_groups_and_any_dtype(rounding, form):
    rows = noise(3, 70)
    rows[1] = 0
    rows[2, 40:] = 1e-9
    found = rounding(rows.bfloat16())
    assert (found.format, found.numbers.shape, found.scales.shape) == (form, (3, 70), (3, 3))
    assert found.scales.dtype == torch.float16
    assert not found.values()[1].any()
    assert error(rows.bfloat16().float(), found.values()) < 2e-4
    # A row's numbers do not depend on its neighbours.
    assert torch.equal(rounding(rows[2:]).numbers, rounding(rows).numbers[2:])


@pytest.mark.parametrize("rounding", [to_int8, to_int4])
def test_what_has_no_scale_is_refused(rounding):
    rows = noise(2, 40)
    for value, words in ((torch.inf, "infinite"), (torch.nan, "not a number"), (1e38, "too large")):
        rows[1, 3] = value
        with pytest.raises(CheckpointError, match=words):
            rounding(rows)
