"""The small reference operators against their formulas in fp64."""

from __future__ import annotations

import math

import pytest
import torch

from headrace.ops.reference.activation import (
    clamped_glu,
    gelu,
    gelu_tanh_mul,
    position_scale,
    relu_squared,
    silu_mul,
    soft_cap,
)
from headrace.ops.reference.linear import LINEAR
from headrace.ops.reference.norm import layer_norm, layer_norm_plus_one, rms_norm, rms_norm_plus_one
from headrace.ops.reference.rope import rope, rope_angles


def close(got: torch.Tensor, want: torch.Tensor, atol: float = 2e-6) -> None:
    torch.testing.assert_close(got.double(), want, rtol=0, atol=atol)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def normed(x: torch.Tensor, eps: float) -> torch.Tensor:
    x = x.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


@pytest.mark.parametrize("shape", [(3, 60), (5, 6, 12)])
def test_norms(shape):
    x, w = noise(*shape) * 1e-2, noise(*shape[1:], seed=1)
    close(rms_norm(x, w, 1e-3), normed(x, 1e-3) * w.double())
    close(rms_norm_plus_one(x, w, 1e-3), normed(x, 1e-3) * (1 + w.double()))


def test_layer_norm_and_gelu():
    x, w, b = torch.randn(5, 24), torch.randn(24), torch.randn(24)
    centred = x.double() - x.double().mean(-1, keepdim=True)
    close(layer_norm(x, w, b, 1e-3), normed(centred, 1e-3) * w.double() + b.double(), 2e-5)
    close(gelu(x), x.double() * (1 + torch.erf(x.double() / 2**0.5)) / 2, 1e-6)


def test_layer_norm_plus_one():
    x, w, b = noise(5, 60) * 3 + 40, noise(60, seed=1), noise(60, seed=2)
    centred = x.double() - x.double().mean(-1, keepdim=True)
    close(layer_norm_plus_one(x, w, b, 1e-3), normed(centred, 1e-3) * (1 + w.double()) + b.double(), 2e-5)
    small = x.bfloat16(), w.bfloat16() * 1e-3, b.bfloat16()
    exact = layer_norm_plus_one(*(part.float() for part in small), 1e-3)
    assert torch.equal(layer_norm_plus_one(*small, 1e-3), exact.bfloat16()), "1 + w is not rounded on the way"


def test_squared_relu():
    x = noise(3, 14) * 3
    before = x.clone()
    close(relu_squared(x), x.double().clamp(min=0) ** 2, 1e-5)
    assert torch.equal(x, before)


def test_where_the_weight_is_multiplied_tells_the_kinds_apart():
    x, w = noise(4, 64).bfloat16(), noise(64, seed=1).bfloat16()
    exact = normed(x, 1e-6)
    assert torch.equal(rms_norm(x, w, 1e-6), exact.float().bfloat16() * w)
    assert torch.equal(rms_norm_plus_one(x, w, 1e-6), (exact.float() * (1 + w.float())).bfloat16())


def test_the_norm_of_large_values_does_not_overflow_in_half_precision():
    x = torch.full((1, 8), 3e4, dtype=torch.float16)
    assert torch.equal(rms_norm(x, torch.ones(8, dtype=torch.float16), 1e-6), torch.ones(1, 8, dtype=torch.float16))


@pytest.mark.parametrize(("dim", "rotated"), [(12, 12), (20, 8)])
def test_rope_is_a_rotation_of_pairs_half_a_head_apart(dim, rotated):
    x, positions = noise(5, 3, dim), torch.tensor([0, 1, 7, 100, 250])
    inv_freq = 100.0 ** -(torch.arange(0, rotated, 2) / rotated)
    got = rope(x, rope_angles(positions, inv_freq, 1.5))
    half = rotated // 2
    pairs = torch.complex(x[..., :half].double(), x[..., half:rotated].double())
    turned = pairs * torch.polar(torch.full((), 1.5).double(), positions.double()[:, None, None] * inv_freq.double())
    close(got[..., :half], turned.real, 1e-4)
    close(got[..., half:rotated], turned.imag, 1e-4)
    assert torch.equal(got[..., rotated:], x[..., rotated:])


def test_rope_in_half_precision_rounds_once():
    x, positions = noise(4, 2, 16).bfloat16(), torch.arange(4)
    angles = rope_angles(positions, torch.ones(8), 1.0)
    assert torch.equal(rope(x, angles), rope(x.float(), angles).bfloat16())


def test_gated_activations_and_cap():
    x = noise(3, 14) * 3
    gate, up = x.double().chunk(2, -1)
    close(silu_mul(x), gate * torch.sigmoid(gate) * up, 1e-5)
    tanh_form = 0.5 * gate * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3)))
    close(gelu_tanh_mul(x), tanh_form * up, 1e-5)
    g, u = gate.clamp(max=1.5), up.clamp(-1.5, 1.5)
    close(clamped_glu(x, 1.5), g / (1 + torch.exp(-1.702 * g)) * u + g / (1 + torch.exp(-1.702 * g)), 1e-5)
    close(soft_cap(x * 20, 30.0), 30 * torch.tanh(x.double() * 20 / 30), 1e-5)


def test_linear_and_embedding():
    x, w, b = noise(3, 10), noise(7, 10, seed=1), noise(7, seed=2)
    close(LINEAR.apply(x, w, b), x.double() @ w.double().T + b.double(), 1e-5)
    close(LINEAR.apply(x, w, None), x.double() @ w.double().T, 1e-5)
    assert torch.equal(LINEAR.embed(torch.tensor([6, 0, 6]), w), w[[6, 0, 6]])
    with pytest.raises(IndexError):
        LINEAR.embed(torch.tensor([7]), w)


def test_factors_of_positions():
    x, positions = noise(4, 2, 6), torch.tensor([0, 6, 7, 1000])
    far = [1 + 0.1 * math.log(1 + (p + 1) // 8) for p in positions.tolist()]
    close(position_scale(x, positions, 8.0, 0.1), x.double() * torch.tensor(far).double()[:, None, None], 1e-6)
