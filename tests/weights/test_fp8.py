"""FP8 with block scales: values, whatever the slices they are read in; and files that do not say one thing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace import LLM, SamplingParams
from headrace.core.errors import CheckpointError, ModelError
from headrace.eval import tiny
from headrace.weights import files
from headrace.weights.checkpoint import open_checkpoint
from headrace.weights.dummy import write_safetensors

QUANTISED = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}


def quantised(weight: torch.Tensor, block: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """e4m3 values, scales, and their product, block by block."""
    height, width = (-(-size // b) for size, b in zip(weight.shape, block, strict=True))
    values = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    scales, product = torch.empty(height, width), torch.empty(weight.shape)
    for i in range(height):
        for j in range(width):
            place = slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1])
            scales[i, j] = weight[place].abs().max() / 448
            values[place] = (weight[place] / scales[i, j]).to(torch.float8_e4m3fn)
            product[place] = values[place].float() * scales[i, j]
    return values, scales, product


def write(folder: Path, block: Any = (128, 128), **tensors: torch.Tensor) -> Path:
    config = {"hidden_size": 4, "quantization_config": {**QUANTISED, "weight_block_size": list(block)}}
    return write_safetensors(folder, config, {name.replace("__", "."): value for name, value in tensors.items()})


@pytest.mark.parametrize("chunk", [1 << 20, 4096])
@pytest.mark.parametrize(("shape", "block"), [((576, 160), (128, 128)), ((5, 7), (2, 3)), ((64, 200), (64, 50))])
def test_values_are_multiplied_by_the_scale_of_their_block(shape, block, chunk, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(files, "CHUNK_BYTES", chunk)
    values, scales, product = quantised(torch.randn(shape, generator=torch.Generator().manual_seed(1)), block)
    norm = torch.randn(9).bfloat16()
    folder = write(tmp_path, block, p__weight=values, p__weight_scale_inv=scales, norm=norm)
    checkpoint = open_checkpoint(folder)
    assert sorted(checkpoint.names()) == ["norm", "p.weight"]
    assert checkpoint.config() == {"hidden_size": 4}
    assert (checkpoint.dtype("p.weight"), checkpoint.dtype("norm")) == (torch.float32, torch.bfloat16)
    assert torch.equal(checkpoint.tensor("p.weight"), product)
    assert torch.equal(checkpoint.tensor("norm"), norm)
    out = torch.empty(shape, dtype=torch.bfloat16)
    checkpoint.read_into("p.weight", out)
    assert torch.equal(out, product.bfloat16())
    checkpoint.close()


def test_files_that_do_not_say_one_thing_are_refused(tmp_path) -> None:
    values, scales, _ = quantised(torch.randn(6, 8), (4, 4))

    def refused(message: str, error: type = CheckpointError, block: Any = (4, 4), **tensors: torch.Tensor) -> None:
        with pytest.raises(error, match=message):
            open_checkpoint(write(tmp_path, block, **tensors))

    refused("tensor 'weight' is torch.float8_e4m3fn and has no weight_scale_inv or weight_scale", weight=values)
    refused("is torch.float32 and has weight_scale_inv", weight=values.float(), weight_scale_inv=scales)
    refused(r"'weight' of \[6, 8\] has scales of \[2, 1\]; expected .* for blocks of \[4, 4\]", weight=values,
            weight_scale_inv=scales[:, :1])  # fmt: skip
    refused(r"weight_block_size must be two sizes, got \[4\]", ModelError, (4,), weight=values)
    refused(r"weight_block_size must be two sizes, got \[4, 0\]", ModelError, (4, 0), weight=values)


def test_a_model_in_fp8_generates_what_its_dequantised_twin_does(tmp_path, caplog) -> None:
    with torch.no_grad():
        plain = tiny.save(tiny.make("qwen3", hidden_size=160), tmp_path / "plain")
    checkpoint = open_checkpoint(plain)
    twin, fp8 = {}, {}
    for name in checkpoint.names():
        twin[name] = fp8[name] = tensor = checkpoint.tensor(name)
        if name.endswith("_proj.weight"):
            fp8[name], fp8[f"{name}_scale_inv"], twin[name] = quantised(tensor, (128, 128))
    config = checkpoint.config()
    write_safetensors(tmp_path / "twin", config, twin)
    write_safetensors(tmp_path / "fp8", config | {"quantization_config": QUANTISED}, fp8)

    def run(folder: Path, **args: Any) -> Any:
        params = SamplingParams(max_tokens=8, ignore_eos=True, detokenize=False, logprobs=0)
        with LLM(str(folder), dtype="float32", skip_tokenizer_init=True, num_threads=1, **args) as llm:
            formats.append(llm.effective_config["weight_formats"])
            output = llm.generate([5, 6, 7, 8], params, use_tqdm=False).outputs[0]
        return output.token_ids, output.logprobs

    caplog.set_level(logging.WARNING, "headrace")
    formats: list[dict[str, int]] = []
    twin_run = run(tmp_path / "twin")
    assert run(tmp_path / "fp8", quant_config={"quant_algo": "none"}) == twin_run
    assert "21 tensors are unpacked while they are read (FP8 with scales of 128 x 128 values" in caplog.text
    # In 8 bits only the order of sums differs.
    kept = run(tmp_path / "fp8")
    assert (kept[0], formats[-1]["8 bits in groups of 32 as e4m3 (fp32 scales)"]) == (twin_run[0], 21)
