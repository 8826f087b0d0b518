"""Experts in MXFP4: values written out by hand, the layout of the hub, and damage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headrace.core.errors import CheckpointError
from headrace.weights.checkpoint import Checkpoint, open_checkpoint
from headrace.weights.dummy import write_safetensors

CONFIG = {"architectures": ["GptOssForCausalLM"], "quantization_config": {"quant_method": "mxfp4"}}
NAME = "model.layers.0.mlp.experts.down_proj"


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def written(folder: Path, tensors: dict[str, torch.Tensor]) -> Checkpoint:
    return open_checkpoint(write_safetensors(folder, CONFIG, tensors))


def value(code: int) -> float:
    """Of 4 bits: sign, exponent with a bias of 1, mantissa; without an exponent the mantissa counts halves."""
    sign, exponent, mantissa = code >> 3, code >> 1 & 3, code & 1
    size = mantissa / 2 if exponent == 0 else 2.0 ** (exponent - 1) * (1 + mantissa / 2)
    return -size if sign else size


def test_values_and_layout(tmp_path: Path) -> None:
    blocks, scales = noise(3, 5, 2, 16), 120 + noise(3, 5, 2) % 16
    bias = torch.randn(3, 5)
    checkpoint = written(tmp_path, {f"{NAME}_blocks": blocks, f"{NAME}_scales": scales, f"{NAME}_bias": bias})
    assert "quantization_config" not in checkpoint.config()
    assert sorted(checkpoint.names()) == [NAME, f"{NAME}_bias"]
    assert (checkpoint.shape(NAME), checkpoint.dtype(NAME)) == ((3, 64, 5), torch.bfloat16)
    got = checkpoint.tensor(NAME)
    for expert in range(3):
        for output in range(5):
            for i in range(64):
                byte = int(blocks[expert, output, i // 32, i % 32 // 2])
                code = byte >> 4 if i % 2 else byte & 15
                want = value(code) * 2.0 ** (int(scales[expert, output, i // 32]) - 127)
                assert got[expert, i, output] == want
    assert torch.equal(torch.cat([rows for _, rows in checkpoint.rows(NAME)]), got)
    assert torch.equal(checkpoint.tensor(f"{NAME}_bias"), bias)


def test_every_code_and_the_smallest_and_largest_scales_are_exact(tmp_path: Path) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    for scale in (1, 60, 127, 250):
        scales = torch.full((1, 1, 16), scale, dtype=torch.uint8)
        got = written(tmp_path / str(scale), {f"{NAME}_blocks": codes, f"{NAME}_scales": scales}).tensor(NAME)
        want = [value(code) for byte in range(256) for code in (byte & 15, byte >> 4)]
        assert torch.equal(got.flatten().double(), torch.tensor(want).double() * 2.0 ** (scale - 127))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{NAME}_blocks": noise(2, 3, 1, 16)}, "has no '.*_scales'"),
        ({f"{NAME}_blocks": noise(2, 3, 1, 16), f"{NAME}_scales": noise(2, 3, 2)}, r"found torch.uint8 \[2, 3, 2\]"),
        ({f"{NAME}_blocks": noise(2, 3, 1, 15), f"{NAME}_scales": noise(2, 3, 1)}, r"found \[2, 3, 1, 15\]"),
        ({f"{NAME}_blocks": noise(2, 3, 1, 16), f"{NAME}_scales": torch.ones(2, 3, 1)}, "torch.float32"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        written(tmp_path, tensors)
