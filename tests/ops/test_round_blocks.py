"""Rounding at load: how near it is, against plain arithmetic and a reference package, and the same bits everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from headrace.core.errors import CheckpointError
from headrace.ops.native import core
from headrace.ops.reference.round_blocks import round_blocks as reference
from headrace.quant.formats import INT4, INT8, BlockFormat, BlockRows

Rounding = Callable[[torch.Tensor, BlockFormat], BlockRows]


@pytest.fixture(params=["reference", "native"])
def rounding(request: pytest.FixtureRequest) -> Rounding:
    if request.param == "reference":
        return reference
    if not core.is_available():
        pytest.skip(core.reason())
    from headrace.ops.native.round_blocks import round_blocks

    return round_blocks


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / 8


def error(rows: torch.Tensor, values: torch.Tensor) -> float:
    return (values - rows).square().mean().item()


@pytest.mark.parametrize(("form", "kind"), [(INT8, "Q8_0"), (INT4, "Q4_0")])
def test_it_is_no_worse_than_the_reference_package(rounding: Rounding, form: BlockFormat, kind: str) -> None:
    rows = noise(64, 1024)
    theirs = GGMLQuantizationType[kind]
    other = torch.from_numpy(quants.dequantize(quants.quantize(rows.numpy(), theirs), theirs))
    ours = rounding(rows, form).values()
    assert error(rows, ours) <= error(rows, other) * (1.01 if kind == "Q8_0" else 0.9)


def test_int8_is_within_half_a_step(rounding: Rounding) -> None:
    rows = noise(20, 100)
    found = rounding(rows, INT8)
    steps = found.scales.float().repeat_interleave(32, 1)[:, :100]
    # The scale is rounded to half precision before it is used, so that the largest value may be cut by that much.
    assert ((found.values() - rows).abs() <= 0.5001 * steps + 2**-11 * rows.abs()).all()


def test_int4_has_no_better_scale_nearby(rounding: Rounding) -> None:
    rows = noise(4, 32, seed=3)
    found = rounding(rows, INT4)
    best = (found.values() - rows).square().sum(1)
    for factor in np.linspace(0.7, 1.4, 71):
        scales = (found.scales.float() * factor).to(torch.float16).float()
        values = (rows / scales).round().clamp(-8, 7) * scales
        assert (best <= (values - rows).square().sum(1) * 1.2 + 1e-9).all(), factor


@pytest.mark.parametrize("form", [INT8, INT4])
def test_zeros_short_groups_and_any_dtype(rounding: Rounding, form: BlockFormat) -> None:
    rows = noise(3, 70)
    rows[1] = 0
    rows[2, 40:] = 1e-9
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        found = rounding(rows.to(dtype), form)
        assert (found.format, found.numbers.shape, found.scales.shape) == (form, (3, 70), (3, 3))
        assert found.scales.dtype == torch.float16
        assert not found.values()[1].any()
        assert error(rows.to(dtype).float(), found.values()) < 2e-4
    # A row's numbers do not depend on its neighbours.
    assert torch.equal(rounding(rows[2:], form).numbers, rounding(rows, form).numbers[2:])


@pytest.mark.parametrize("form", [INT8, INT4])
def test_what_has_no_scale_is_refused(rounding: Rounding, form: BlockFormat) -> None:
    rows = noise(2, 40)
    for value, words in ((torch.inf, "infinite"), (torch.nan, "not a number"), (1e38, "too large")):
        rows[1, 3] = value
        with pytest.raises(CheckpointError, match=words):
            rounding(rows, form)


SAME_BITS = """
import torch
from headrace.ops.native.round_blocks import round_blocks
from headrace.ops.reference.round_blocks import round_blocks as reference
from headrace.quant.formats import INT4, INT8

random = torch.Generator().manual_seed(5)
for n_in in (1, 7, 32, 33, 64, 100, 576):
    for size in (1.0, 1e-6, 3e4, 1e-20, 1e-37, 1e-43):
        rows = torch.randn(60, n_in, generator=random) * size
        rows[0] = 0
        rows[1, ::2] = 0
        rows[2] = rows[2].sign() * size              # ties of size
        rows[3] = (rows[3] / size).round() * size    # ties of rounding
        rows[4, 1:] *= 1e-5
        for dtype in (torch.float32, torch.bfloat16):
            for form in (INT8, INT4):
                ours, theirs = round_blocks(rows.to(dtype), form), reference(rows.to(dtype), form)
                where = (n_in, size, dtype, form)
                assert torch.equal(ours.numbers, theirs.numbers), where
                assert torch.equal(ours.scales.view(torch.int16), theirs.scales.view(torch.int16)), where
# Every float16 and the floats between and beside two of them.
halves = torch.arange(0, 0x7C00, dtype=torch.int16).view(torch.float16).float()
between = (halves[1:].double() + halves[:-1].double()).div(2).float()
for values in (halves, between, between.nextafter(halves[1:]), between.nextafter(halves[:-1])):
    rows = values[:, None] * 127
    rows = rows[rows[:, 0] < 8.3e6]
    assert torch.equal(round_blocks(rows, INT8).scales, reference(rows, INT8).scales)
"""


@pytest.mark.parametrize("level", core.native().runnable_levels() if core.is_available() else [])
def test_the_core_gives_the_bits_of_the_reference(level: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SAME_BITS], env={**os.environ, "HEADRACE_ISA": level}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
