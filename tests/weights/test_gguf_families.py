"""Every architecture that may arrive as GGUF gives the very logits that its safetensors form gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import MODEL_ARCH
from gguf_convert import convert
from transformers import PreTrainedModel

from headrace.core.errors import CheckpointError
from headrace.eval.tiny import make, save
from headrace.weights.checkpoint import open_checkpoint
from parity.harness import ModelRun

CASES = [
    ("llama-llama3", MODEL_ARCH.LLAMA, {}),
    ("llama-biases", MODEL_ARCH.LLAMA, {}),
    ("llama-yarn", MODEL_ARCH.LLAMA, {}),
    ("llama-odd-mqa", MODEL_ARCH.LLAMA, {}),
    ("mistral", MODEL_ARCH.LLAMA, {}),
    ("mistral-derived-head-dim", MODEL_ARCH.LLAMA, {}),
    ("mixtral", MODEL_ARCH.LLAMA, {}),
    ("mixtral-odd-window-40", MODEL_ARCH.LLAMA, {}),
    ("qwen3-moe-normalised", MODEL_ARCH.QWEN3MOE, {"mlp_only_layers": []}),
    ("qwen2", MODEL_ARCH.QWEN2, {}),
    ("qwen2-tied", MODEL_ARCH.QWEN2, {}),
    ("qwen2-yarn-odd", MODEL_ARCH.QWEN2, {}),
    ("qwen3", MODEL_ARCH.QWEN3, {}),
    ("qwen3-yarn-odd", MODEL_ARCH.QWEN3, {}),
    # The scale of attention is not in the file: it follows from the size.
    ("gemma3", MODEL_ARCH.GEMMA3, {"query_pre_attn_scalar": 32}),
    ("phi3", MODEL_ARCH.PHI3, {}),
    ("phi3-sliding-mha", MODEL_ARCH.PHI3, {}),
    ("phi3-partial-tied", MODEL_ARCH.PHI3, {}),
    ("phi3-longrope-short", MODEL_ARCH.PHI3, {}),
    ("phi3-longrope-long", MODEL_ARCH.PHI3, {}),
    ("nemotron", MODEL_ARCH.NEMOTRON, {}),
    ("nemotron-biases-tied", MODEL_ARCH.NEMOTRON, {}),
    ("nemotron-odd", MODEL_ARCH.NEMOTRON, {}),
    ("exaone4", MODEL_ARCH.EXAONE4, {}),
    ("exaone4-no-window", MODEL_ARCH.EXAONE4, {}),
    ("exaone4-window-40-odd", MODEL_ARCH.EXAONE4, {}),
]


def tiny(variant: str, **changes: Any) -> PreTrainedModel:
    model = make(variant, **changes)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            # So that 1 + w is exact.
            parameter.copy_((parameter * 4096).round() / 4096)
    return model


@pytest.mark.parametrize(("variant", "arch", "changes"), CASES, ids=[case[0] for case in CASES])
def test_logits_equal_those_of_the_safetensors_form(
    tmp_path: Path, variant: str, arch: MODEL_ARCH, changes: dict[str, Any]
) -> None:
    model = tiny(variant, **changes)
    path = convert(model, arch, tmp_path / "m.gguf")
    prompt = torch.randint(3, 300, (75,), generator=torch.Generator().manual_seed(3)).tolist()
    found, expected = ModelRun(path).logprobs(prompt), ModelRun(save(model, tmp_path / "hub")).logprobs(prompt)
    assert expected.std() > 0.5
    assert torch.equal(found, expected)


@pytest.mark.parametrize("arch", [MODEL_ARCH.PHI3, MODEL_ARCH.NEMOTRON, MODEL_ARCH.EXAONE4, MODEL_ARCH.QWEN2])
def test_every_name_of_the_reference_has_a_place(tmp_path: Path, arch: MODEL_ARCH) -> None:
    variant = {"PHI3": "phi3", "NEMOTRON": "nemotron-biases-tied", "EXAONE4": "exaone4", "QWEN2": "qwen2"}[arch.name]
    model = tiny(variant)
    checkpoint = open_checkpoint(convert(model, arch, tmp_path / "m.gguf"))
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    assert set(checkpoint.names()) == set(model.state_dict()) - tied
    checkpoint.close()


def config_of(tmp_path: Path, variant: str, arch: MODEL_ARCH, changes: dict[str, Any]) -> dict[str, Any]:
    checkpoint = open_checkpoint(convert(tiny(variant), arch, tmp_path / "m.gguf", changes))
    checkpoint.close()
    return checkpoint.config()


def test_long_rope_says_its_attention_factor_only_where_it_is_not_the_usual_one(tmp_path: Path) -> None:
    scaling = config_of(tmp_path, "phi3-longrope-long", MODEL_ARCH.PHI3, {})["rope_scaling"]
    assert scaling == {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.1, 1.3, 1.7, 2.0, 2.5],
        "long_factor": [1.0, 2.0, 4.0, 8.0, 15.0, 30.0],
        "original_max_position_embeddings": 8,
    }
    scaling = config_of(tmp_path, "phi3-longrope-short", MODEL_ARCH.PHI3, {})["rope_scaling"]
    assert scaling["attention_factor"] == 1.2
    with pytest.raises(CheckpointError, match="original_context_length is 1, expected at least 2"):
        config_of(tmp_path, "phi3-longrope-long", MODEL_ARCH.PHI3, {"rope.scaling.original_context_length": 1})


def test_a_window_of_zero_is_none(tmp_path: Path) -> None:
    assert config_of(tmp_path, "phi3", MODEL_ARCH.PHI3, {})["sliding_window"] == 512
    for value in (0, None):
        assert (
            config_of(tmp_path, "phi3", MODEL_ARCH.PHI3, {"attention.sliding_window": value})["sliding_window"] is None
        )


def test_windows_of_exaone4(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"sliding_window is there, but attention\.sliding_window_pattern is missing"
    ):
        config_of(tmp_path, "exaone4", MODEL_ARCH.EXAONE4, {"attention.sliding_window_pattern": None})
    with pytest.raises(CheckpointError, match="sliding_window_pattern has 2 entries for 5 layers"):
        config_of(tmp_path, "exaone4", MODEL_ARCH.EXAONE4, {"attention.sliding_window_pattern": [True, False]})
    # The 32B's first files have neither window nor pattern.
    big = {"block_count": 64, "attention.sliding_window": None, "attention.sliding_window_pattern": None}
    config = config_of(tmp_path, "exaone4", MODEL_ARCH.EXAONE4, big)
    assert config["sliding_window"] == 4096
    assert config["layer_types"] == (["sliding_attention"] * 3 + ["full_attention"]) * 16


def test_a_part_of_each_head_is_rotated_in_some_architectures_only(tmp_path: Path) -> None:
    assert config_of(tmp_path, "nemotron-odd", MODEL_ARCH.NEMOTRON, {})["partial_rotary_factor"] == 0.25
    with pytest.raises(CheckpointError, match="dimension_count 34 differs from the head width 32"):
        config_of(tmp_path, "nemotron", MODEL_ARCH.NEMOTRON, {"rope.dimension_count": 34})
    with pytest.raises(CheckpointError, match="dimension_count 16 differs from the head width 32"):
        config_of(tmp_path, "qwen3", MODEL_ARCH.QWEN3, {"rope.dimension_count": 16})


def test_experts_are_taken_where_their_names_are_known(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="architecture 'qwen2' with experts is not supported"):
        config_of(tmp_path, "qwen2", MODEL_ARCH.QWEN2, {"expert_count": 8})
    checkpoint = open_checkpoint(convert(tiny("mixtral"), MODEL_ARCH.LLAMA, tmp_path / "experts.gguf"))
    names = [name for name in checkpoint.names() if ".experts." in name]
    assert len(names) == 3 * 4 * 3
    assert checkpoint.shape("model.layers.2.block_sparse_moe.experts.3.w2.weight") == (64, 96)
    checkpoint.close()
