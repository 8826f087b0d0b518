"""Architectures whose GGUF tensors are parts of, or several of, the hub's: the very logits of the safetensors form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import MODEL_ARCH
from gguf_convert_hub import convert_hub, tiny_folder

from headrace.core.errors import CheckpointError
from headrace.weights.checkpoint import open_checkpoint
from parity.harness import ModelRun

# What these files do not say follows from the architecture, so that the variants have it.
OSS, LLAMA = {"swiglu_limit": 7.0}, {"attention_chunk_size": 8192, "floor_scale": 8192}
LLAMA_MIXED = {**LLAMA, "interleave_moe_layer_step": 1, "num_experts_per_tok": 2}
NEXT = {"norm_topk_prob": True}
CASES = [
    ("deepseek-v3", MODEL_ARCH.DEEPSEEK2, {}),
    pytest.param("deepseek-v3-plain", MODEL_ARCH.DEEPSEEK2, {}, marks=pytest.mark.slow),
    ("gpt-oss", MODEL_ARCH.GPT_OSS, OSS),
    ("llama4", MODEL_ARCH.LLAMA4, LLAMA),
    pytest.param("llama4", MODEL_ARCH.LLAMA4, LLAMA_MIXED, marks=pytest.mark.slow),
    ("qwen3-next", MODEL_ARCH.QWEN3NEXT, NEXT),
    ("qwen3-next-odd-biases-tied", MODEL_ARCH.QWEN3NEXT, {**NEXT, "mlp_only_layers": []}),
    pytest.param("nemotron-h", MODEL_ARCH.NEMOTRON_H, {}, marks=pytest.mark.slow),
    ("nemotron-h-odd-biases", MODEL_ARCH.NEMOTRON_H, {"use_conv_bias": True}),
    pytest.param("nemotron-h-experts", MODEL_ARCH.NEMOTRON_H_MOE, {"intermediate_size": 48}, marks=pytest.mark.slow),
    ("nemotron-h-latent-experts-odd", MODEL_ARCH.NEMOTRON_H_MOE, {"mlp_bias": False}),
]


@pytest.mark.parametrize(("variant", "arch", "changes"), CASES)
def test_logits_equal_those_of_the_folder(
    tmp_path: Path, variant: str, arch: MODEL_ARCH, changes: dict[str, Any]
) -> None:
    folder = tiny_folder(tmp_path, variant, **changes)
    path = convert_hub(folder, arch, tmp_path / "m.gguf")
    checkpoint, original = open_checkpoint(path), open_checkpoint(folder)
    assert set(checkpoint.names()) == set(original.names())
    for name in original.names():
        assert torch.equal(checkpoint.tensor(name), original.tensor(name).float()), name
    prompt = torch.randint(3, 300, (75,), generator=torch.Generator().manual_seed(3)).tolist()
    found, expected = ModelRun(path).logprobs(prompt), ModelRun(folder).logprobs(prompt)
    assert expected.std() > 0.5
    assert torch.equal(found, expected)


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, "deepseek-v3")
    for changes, message in [
        ({"expert_gating_func": None}, r"expert_gating_func is 1 \(1, softmax.*supported: 2"),
        ({"expert_count": None}, "'deepseek2' without experts is not supported"),
        ({"rope.dimension_count": 24}, "keys of 24 values, of which rope.dimension_count 24 are rotated"),
        ({"nextn_predict_layers": 3}, "nextn_predict_layers is 3: as many as there are layers"),
        ({"expert_weights_norm": 3}, "expert_weights_norm' is 3, expected true or false"),
    ]:
        path = convert_hub(folder, MODEL_ARCH.DEEPSEEK2, tmp_path / "m.gguf", changes)
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(path)


def test_layers_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, "deepseek-v3")
    path = convert_hub(folder, MODEL_ARCH.DEEPSEEK2, tmp_path / "m.gguf", {"nextn_predict_layers": 1})
    checkpoint = open_checkpoint(path)
    assert checkpoint.config()["num_hidden_layers"] == 2
    assert not [name for name in checkpoint.names() if name.startswith("model.layers.2.")]
    assert [name for name in checkpoint.names() if name.startswith("model.layers.1.")]


def test_groups_of_deepseek_v3_in_files_that_do_not_tell(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, "deepseek-v3")
    untold = {"expert_group_count": None, "expert_group_used_count": None}
    for n_experts, groups in ((8, (1, 1)), (256, (8, 4))):
        changes = {**untold, "expert_count": n_experts}
        config = open_checkpoint(convert_hub(folder, MODEL_ARCH.DEEPSEEK2, tmp_path / "m.gguf", changes)).config()
        assert (config["n_group"], config["topk_group"]) == groups
