"""Forms of quantised folders: their values, the blocks that hold them, models of them, and files that are damaged."""

from __future__ import annotations

import pytest
import torch

from headrace.core.errors import CheckpointError, ModelError
from headrace.quant.formats import BlockRows
from headrace.weights import files
from headrace.weights.checkpoint import open_checkpoint
from headrace.weights.dummy import write_safetensors
from weights.forms import FORMS, write

pytest.importorskip("compressed_tensors", reason="writes the files of that form")


CONFIG = {"hidden_size": 64}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("chunk", [1 << 20, 5000])
@pytest.mark.parametrize("name", FORMS)
def test_values_and_blocks_are_those_of_the_form(name, chunk, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(files, "CHUNK_BYTES", chunk)
    form = FORMS[name]
    stored, values = form.write(noise(48, 64))
    plain = {"p.bias": noise(48), "norm.weight": noise(7).bfloat16()}
    folder = write(tmp_path, form, plain | {f"p.{end}": tensor for end, tensor in stored.items()}, CONFIG)
    checkpoint = open_checkpoint(folder)
    assert sorted(checkpoint.names()) == ["norm.weight", "p.bias", "p.weight"]
    assert checkpoint.config() == CONFIG
    assert (checkpoint.shape("p.weight"), checkpoint.dtype("p.weight")) == ((48, 64), torch.float32)
    found = checkpoint.tensor("p.weight")
    near = form.tolerance * values.abs().max()
    assert (found - values).abs().max() <= near
    assert torch.equal(checkpoint.tensor("norm.weight"), plain["norm.weight"])
    kept = checkpoint.block_format("p.weight")
    assert (kept is not None) == form.kept
    assert bool(checkpoint.unpacked()) != bool(checkpoint.kept()) == form.kept
    if kept is not None:
        parts = list(checkpoint.block_rows("p.weight"))
        assert all(isinstance(part, BlockRows) and part.format == kept for _, part in parts)
        assert len(parts) > (chunk == 5000)
        assert (torch.cat([part.values() for _, part in parts]) - found).abs().max() <= near
    checkpoint.close()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gptq-4", {"qzeros": torch.zeros(2, 6, dtype=torch.int32)}, "has other zeros than 8.*set sym to false"),
        ("gptq-4", {"scales": torch.full((2, 48), torch.inf).half()}, "scales that are infinite or not a number"),
        (
            "gptq-4",
            {"qzeros": torch.zeros(2, 5, dtype=torch.int32)},
            r"expected torch.int32 \[2, 6\], found .*\[2, 5\]",
        ),
        ("gptq-4", {"g_idx": torch.full((64,), 2, dtype=torch.int32)}, "names groups beyond the 2"),
        ("gptq-4", {"g_idx": torch.zeros(60, dtype=torch.int32)}, "holds 4.26667 bits"),
        ("awq", {"qzeros": torch.zeros(3, 6, dtype=torch.int32)}, r"expected torch.int32 \[2, 6\]"),
        ("ct-int4", {"weight_shape": torch.tensor([48, 50])}, "holds 5.12 bits"),
        ("ct-int4", {"weight_scale": torch.ones(7, 2)}, r"\[7, 2\] does not fit 'p.weight_packed'"),
        ("ct-fp8", {"weight": torch.full((48, 64), torch.nan).to(torch.float8_e4m3fn)}, "values that are not a number"),
        ("ct-fp8", {"weight": torch.ones(48, 64)}, "is torch.float32, and has scales"),
        ("modelopt-nvfp4", {"weight_scale": torch.ones(48, 4)}, "expected torch.float8_e4m3fn"),
        ("modelopt-nvfp4", {"pre_quant_scale": torch.ones(63)}, "expected 64 factors"),
        ("ct-mxfp4", {"weight_scale": torch.full((48, 2), 255, dtype=torch.uint8)}, "infinite or not a number"),
    ],
)
def test_parts_that_do_not_fit_are_refused(name, change, message, tmp_path) -> None:
    form = FORMS[name]
    stored = form.write(noise(48, 64))[0] | change
    folder = write(tmp_path, form, {f"p.{end}": tensor for end, tensor in stored.items()}, CONFIG)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder).tensor("p.weight")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "bitsandbytes"}, "'bitsandbytes' is not known; known: awq, compressed-tensors,"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "checkpoint_format must be one of gptq, gptq_v2"),
        ({"quant_method": "awq", "version": "gemv"}, "version of AWQ must be 'gemm', got 'gemv'"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "quant_algo of ModelOpt must be one of FP8"),
        ({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24"}}, "must be 'dense'"),
        (
            {"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"R1": {"type": "hadamard"}}}},
            r"transform_config turns weights and activations \(R1\)",
        ),
        ([4], "must be an object"),
    ],
)
def test_layouts_that_are_not_known_are_refused(config, message, tmp_path) -> None:
    write_safetensors(tmp_path, {"quantization_config": config}, {"w": noise(2, 2)})
    with pytest.raises(ModelError, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("bits", ["gptq-4-zeros", "gptq-8-zeros-16"])
def test_zeros_of_version_1_may_be_zero(bits, tmp_path) -> None:
    weight = noise(48, 64)
    weight[::3] = weight[::3].abs() + 1
    stored, values = FORMS[bits].write(weight)
    folder = write(tmp_path, FORMS[bits], {f"p.{end}": tensor for end, tensor in stored.items()}, CONFIG)
    found = open_checkpoint(folder).tensor("p.weight")
    assert bool((found[::3] >= 0).all())
    assert torch.equal(found, values)


def test_factors_of_inputs_are_part_of_the_values(tmp_path) -> None:
    form = FORMS["modelopt-nvfp4"]
    stored, values = form.write(noise(48, 64))
    factors = noise(64, seed=2)
    folder = write(
        tmp_path, form, {f"p.{end}": tensor for end, tensor in (stored | {"pre_quant_scale": factors}).items()}, CONFIG
    )
    checkpoint = open_checkpoint(folder)
    assert torch.equal(checkpoint.tensor("p.weight"), values * factors)
    assert "pre_quant_scale" in next(iter(checkpoint.unpacked()))
