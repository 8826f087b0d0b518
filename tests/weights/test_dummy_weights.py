"""Random weights: a function of seed, name and shape; sized so that activations stay finite."""

from __future__ import annotations

import pytest
import torch

from headrace.core.errors import CheckpointError
from headrace.weights.dummy import DummyCheckpoint

SHAPES = {
    "model.embed_tokens.weight": (1000, 256),
    "model.layers.0.input_layernorm.weight": (256,),
    "model.norm.weight": (256,),
    "model.layers.0.self_attn.q_proj.bias": (256,),
}


def test_values_depend_on_seed_and_name_only() -> None:
    one = DummyCheckpoint({}, SHAPES, seed=1)
    reversed_order = DummyCheckpoint({}, dict(reversed(SHAPES.items())), seed=1)
    other = DummyCheckpoint({}, SHAPES, seed=2)
    for name in SHAPES:
        assert torch.equal(one.tensor(name), reversed_order.tensor(name))
        assert not torch.equal(one.tensor(name), other.tensor(name))
    assert not torch.equal(one.tensor("model.norm.weight"), one.tensor("model.layers.0.input_layernorm.weight"))


def test_a_wider_copy_holds_the_same_numbers() -> None:
    checkpoint = DummyCheckpoint({}, SHAPES, seed=1, dtype=torch.bfloat16)
    wide = torch.empty(1000, 256, dtype=torch.float32)
    checkpoint.read_into("model.embed_tokens.weight", wide)
    assert torch.equal(wide, checkpoint.tensor("model.embed_tokens.weight").float())


def test_moments() -> None:
    checkpoint = DummyCheckpoint({}, SHAPES, seed=1, dtype=torch.float32, zero_centred=["model.norm.weight"])
    expected = {
        "embed_tokens": (0.0, 1 / 16),
        "input_layernorm": (1.0, 0.1),
        "model.norm": (0.0, 0.1),
        "bias": (0.0, 0.1),
    }
    for part, (mean, std) in expected.items():
        tensor = checkpoint.tensor(next(name for name in SHAPES if part in name))
        assert tensor.mean().item() == pytest.approx(mean, abs=0.03)
        assert tensor.std().item() == pytest.approx(std, rel=0.15)
    assert checkpoint.nbytes() == (1000 * 256 + 3 * 256) * 4


def test_errors() -> None:
    with pytest.raises(ValueError, match="zero_centred names tensors that are not in shapes: nope"):
        DummyCheckpoint({}, SHAPES, seed=0, zero_centred=["nope"])
    with pytest.raises(CheckpointError, match="'nope' is missing"):
        DummyCheckpoint({}, SHAPES, seed=0).tensor("nope")
