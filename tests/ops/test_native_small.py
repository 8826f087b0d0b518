"""Norms, activations and rotation on the native core: near the reference, and each row the same bits in any company."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.ops.native import core
from headrace.ops.reference import activation as ref_activation
from headrace.ops.reference import norm as ref_norm
from headrace.ops.reference import rope as ref_rope

pytestmark = pytest.mark.skipif(not core.is_available(), reason=f"no native core: {core.reason()}")
if core.is_available():
    from headrace.ops.native import elementwise, norm, rope

F32, BF16 = torch.float32, torch.bfloat16
TOLERANCE = {F32: {"rtol": 2e-6, "atol": 2e-6}, BF16: {"rtol": 2**-7, "atol": 2**-7}}
"""fp32: other orders of additions and polynomials; bf16: the reference rounds in between, the core once."""

Apply = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Pair:
    """An operator with its other arguments settled."""

    native: Apply
    reference: Apply
    shape: tuple[int, ...]
    """Of a row."""


def exactly(reference: Apply, dtype: torch.dtype) -> Apply:
    """The reference in fp64, rounded once."""
    return lambda x: reference(x.double()).to(dtype)


def pairs(size: int, heads: int, dtype: torch.dtype, rng: torch.Generator) -> dict[str, Pair]:
    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng).to(dtype)

    w, b, per_head = noise(size), noise(size), noise(heads, size)
    other = noise(1, size)
    return {
        "rms_norm": Pair(lambda x: norm.rms_norm(x, w, 1e-5), lambda x: ref_norm.rms_norm(x, w, 1e-5), (size,)),
        "rms_norm of heads": Pair(
            lambda x: norm.rms_norm(x, per_head, 1e-5), lambda x: ref_norm.rms_norm(x, per_head, 1e-5), (heads, size)
        ),
        "one norm for all heads": Pair(
            lambda x: norm.rms_norm_plus_one(x, w, 1e-5),
            lambda x: ref_norm.rms_norm_plus_one(x, w, 1e-5),
            (heads, size),
        ),
        "layer_norm": Pair(
            lambda x: norm.layer_norm(x, w, b, 1e-5), lambda x: ref_norm.layer_norm(x, w, b, 1e-5), (size,)
        ),
        "layer_norm_plus_one": Pair(
            lambda x: norm.layer_norm_plus_one(x, w, b, 1e-5),
            lambda x: ref_norm.layer_norm_plus_one(x, w, b, 1e-5),
            (size,),
        ),
        "silu_mul": Pair(elementwise.silu_mul, exactly(ref_activation.silu_mul, dtype), (2 * size,)),
        # In fp32 torch's 1 + tanh cancels where tanh is near -1, and is itself far off there.
        "gelu_tanh_mul": Pair(elementwise.gelu_tanh_mul, exactly(ref_activation.gelu_tanh_mul, dtype), (2 * size,)),
        "clamped_glu": Pair(
            lambda x: elementwise.clamped_glu(x, 0.8),
            lambda x: ref_activation.clamped_glu(x.double(), 0.8).to(dtype),
            (2 * size,),
        ),
        # Relative to x, not to the result, which is nothing for x far below zero.
        "gelu": Pair(elementwise.gelu, exactly(ref_activation.gelu, dtype), (size,)),
        "relu_squared": Pair(elementwise.relu_squared, ref_activation.relu_squared, (size,)),
        "soft_cap": Pair(
            lambda x: elementwise.soft_cap(x, 3.0), lambda x: ref_activation.soft_cap(x.float(), 3.0).to(dtype), (size,)
        ),
        "add": Pair(
            lambda x: elementwise.add(x, other.expand(x.shape[0], -1).contiguous()), lambda x: x + other, (size,)
        ),
        "add_scaled": Pair(
            lambda x: elementwise.add_scaled(x, other.expand(x.shape[0], -1).contiguous(), 0.7),
            lambda x: (x.double() + other.double() * 0.7).to(dtype),
            (size,),
        ),
        # Half of a row for the gate, as it lies among the outputs of a projection.
        "sigmoid_mul": Pair(
            lambda x: elementwise.sigmoid_mul(x[:, size:], x[:, :size]),
            lambda x: ref_activation.sigmoid_mul(x[:, size:], x[:, :size]),
            (2 * size,),
        ),
        "sigmoid_mul by row": Pair(
            lambda x: elementwise.sigmoid_mul(x[:, 1:], x[:, :1]),
            lambda x: ref_activation.sigmoid_mul(x[:, 1:], x[:, :1]),
            (1 + size,),
        ),
        "scale": Pair(lambda x: elementwise.scale(x, 5.1), lambda x: ref_activation.scale(x, 5.1), (size,)),
    }


NAMES = tuple(pairs(4, 1, F32, torch.Generator()))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(
    size=st.sampled_from([4, 12, 15, 16, 17, 20, 24, 33, 64, 100, 576]),
    heads=st.sampled_from([1, 3]),
    n_rows=st.sampled_from([1, 2, 7, 40]),
    dtype=st.sampled_from([F32, BF16]),
    scale=st.sampled_from([0.01, 1.0, 30.0]),
    seed=st.integers(0, 1 << 30),
)
def test_near_the_reference_and_each_row_alone(name, size, heads, n_rows, dtype, scale, seed):
    rng = torch.Generator().manual_seed(seed)
    pair = pairs(size, heads, dtype, rng)[name]
    # Rows as they lie inside wider ones.
    wide = (scale * torch.randn((n_rows, *pair.shape[:-1], pair.shape[-1]), generator=rng)).to(dtype)
    x = torch.cat((wide, wide), 1)[:, : pair.shape[0]]
    got = pair.native(x)
    torch.testing.assert_close(got, pair.reference(x.contiguous()), **TOLERANCE[dtype])
    for row in range(n_rows):
        assert torch.equal(got[row : row + 1], pair.native(x[row : row + 1].clone())), f"row {row}"


def test_extreme_values_stay_what_they_are() -> None:
    x = torch.tensor([[torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 200.0, -200.0, 1e-30]])
    gate = torch.cat((x, torch.ones_like(x)), 1)
    torch.testing.assert_close(elementwise.silu_mul(gate), ref_activation.silu_mul(gate.clone()), equal_nan=True)
    torch.testing.assert_close(elementwise.soft_cap(x, 30.0), ref_activation.soft_cap(x, 30.0), equal_nan=True)
    assert elementwise.gelu(x).isnan().tolist() == x.isnan().tolist()
    assert elementwise.gelu(x[:, :2]).tolist() == [[torch.inf, 0.0]]
    torch.testing.assert_close(elementwise.relu_squared(x), ref_activation.relu_squared(x), equal_nan=True)


@settings(max_examples=40, deadline=None)
@given(
    head_dim=st.sampled_from([12, 20, 32, 64, 128]),
    share=st.sampled_from([1.0, 0.5]),
    heads=st.sampled_from([1, 3]),
    dtype=st.sampled_from([F32, BF16]),
    positions=st.lists(st.integers(0, 130_000), min_size=1, max_size=20),
    seed=st.integers(0, 1 << 30),
)
def test_rotation_is_near_the_reference_and_each_row_alone(head_dim, share, heads, dtype, positions, seed):
    rng = torch.Generator().manual_seed(seed)
    r = int(head_dim * share) // 2 * 2
    inv_freq = 1.0 / 10000.0 ** (torch.arange(0, r, 2) / r)
    at = torch.tensor(positions)
    x = torch.randn((len(positions), heads + 2, head_dim), generator=rng).to(dtype)[:, :heads]
    angles = rope.rope_angles(at, inv_freq, 1.1)
    wanted = ref_rope.rope_angles(at, inv_freq, 1.1)
    torch.testing.assert_close(angles[:, 0], wanted.cos[:, 0, : r // 2], rtol=0, atol=3e-7)
    torch.testing.assert_close(angles[:, 1], wanted.sin[:, 0, r // 2 :], rtol=0, atol=3e-7)
    got = rope.rope(x, angles)
    torch.testing.assert_close(got, ref_rope.rope(x, wanted), **TOLERANCE[dtype])
    for row in range(len(positions)):
        alone = rope.rope(x[row : row + 1].clone(), rope.rope_angles(at[row : row + 1], inv_freq, 1.1))
        assert torch.equal(got[row : row + 1], alone)


@settings(max_examples=20, deadline=None)
@given(
    size=st.sampled_from([4, 12, 33, 128]),
    heads=st.sampled_from([1, 3]),
    dtype=st.sampled_from([F32, BF16]),
    positions=st.lists(st.integers(0, 1 << 20), min_size=1, max_size=20),
    floor_scale=st.sampled_from([1.0, 4.0, 8192.0]),
    seed=st.integers(0, 1 << 30),
)
def test_factors_of_positions_are_near_the_reference_and_each_row_alone(
    size, heads, dtype, positions, floor_scale, seed
):
    rng, at = torch.Generator().manual_seed(seed), torch.tensor(positions)
    x = torch.randn((len(positions), heads + 2, size), generator=rng).to(dtype)[:, :heads]
    got = elementwise.position_scale(x, at, floor_scale, 0.1)
    torch.testing.assert_close(got, ref_activation.position_scale(x, at, floor_scale, 0.1), **TOLERANCE[dtype])
    for row in range(len(positions)):
        alone = elementwise.position_scale(x[row : row + 1].clone(), at[row : row + 1], floor_scale, 0.1)
        assert torch.equal(got[row : row + 1], alone)
