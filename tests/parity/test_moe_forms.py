"""Checkpoints of models with experts in the other forms that the hub has: nested, in MXFP4, in older words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from harness import ModelRun
from safetensors.torch import load_file, save_file

from headrace.core.errors import ModelError
from headrace.eval.parity import measure
from headrace.eval.references import open_reference, vocab_size
from headrace.eval.tiny import make, random_prompts, randomise, save
from headrace.weights.checkpoint import open_checkpoint


def prompt_of(length: int = 70) -> list[int]:
    (prompt,) = random_prompts(300, [length])
    return prompt


def rewrite(folder: Path, tensors: dict[str, torch.Tensor], **fields: Any) -> Path:
    """The configuration of ``folder`` with other fields (None removes), and other tensors."""
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps({name: v for name, v in config.items() if v is not None}))
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_llama4_out_of_a_checkpoint_with_a_vision_tower(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = make("llama4").config.to_dict()
    vision = {
        "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14, "vision_output_dim": 32, "projector_input_dim": 32,
        "projector_output_dim": 32,
    }  # fmt: skip
    config = transformers.Llama4Config(text_config=text, vision_config=vision, attn_implementation="eager")
    model = transformers.Llama4ForConditionalGeneration(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        randomise(name, parameter, generator, zero_centred=False)
    folder, prompt = save(model, tmp_path), prompt_of()
    assert any(name.startswith("vision_model.") for name in open_checkpoint(folder).names())
    want = model(input_ids=torch.tensor([prompt])).logits[0].log_softmax(-1)
    assert (ModelRun(folder).logprobs(prompt) - want).abs().max() < 5e-4
    assert "text only" in caplog.text
    reference, _ = open_reference(folder)
    assert vocab_size(reference) == text["vocab_size"]
    assert measure("llama4", folder, reference, [prompt], num_threads=1).holds()


def test_gpt_oss_in_mxfp4_is_the_model_of_its_values(tmp_path: Path) -> None:
    model = make("gpt-oss")
    plain, packed = save(model, tmp_path / "plain"), save(model, tmp_path / "packed")
    floats, blocks = load_file(plain / "model.safetensors"), load_file(packed / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for name in [name for name in floats if name.endswith(("gate_up_proj", "down_proj")) and "experts" in name]:
        n, k, m = floats[name].shape
        del blocks[name]
        blocks[f"{name}_blocks"] = torch.randint(0, 256, (n, m, k // 32, 16), dtype=torch.uint8, generator=generator)
        # Values between 2^-7 and 6 * 2^-3.
        blocks[f"{name}_scales"] = torch.randint(121, 125, (n, m, k // 32), dtype=torch.uint8, generator=generator)
    rewrite(packed, blocks, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    checkpoint = open_checkpoint(packed)
    rewrite(plain, {name: checkpoint.tensor(name).float() for name in floats})
    prompt = prompt_of()
    assert torch.equal(ModelRun(packed).logprobs(prompt), ModelRun(plain).logprobs(prompt))
    reference = type(model).from_pretrained(plain, attn_implementation="eager", experts_implementation="eager").eval()
    want = reference(torch.tensor([prompt])).logits[0].log_softmax(-1)
    assert (ModelRun(packed).logprobs(prompt) - want).abs().max() < 5e-4


def test_gpt_oss_in_older_words(tmp_path: Path) -> None:
    """``rope_theta`` and ``rope_scaling``, as the published files have them; no ``layer_types``, no window."""
    model = make("gpt-oss", sliding_window=128)
    new, old = save(model, tmp_path / "new"), save(model, tmp_path / "old")
    rope = json.loads((old / "config.json").read_text())["rope_parameters"]
    theta = rope.pop("rope_theta")
    rewrite(
        old, load_file(old / "model.safetensors"), rope_parameters=None, rope_scaling=rope, rope_theta=theta,
        layer_types=None, sliding_window=None, torch_dtype="float32", dtype=None, swiglu_alpha=None,
    )  # fmt: skip
    prompt = prompt_of(200)
    assert torch.equal(ModelRun(old).logprobs(prompt), ModelRun(new).logprobs(prompt))


@pytest.mark.parametrize(
    ("variant", "fields", "message"),
    [
        ("gpt-oss", {"swiglu_alpha": 1.5}, "swiglu_alpha must be 1.702, got 1.5"),
        ("gpt-oss", {"num_experts_per_tok": 5}, "num_experts_per_tok = 5 must be at most num_local_experts = 4"),
        ("mixtral", {"hidden_act": "gelu"}, "hidden_act must be 'silu'"),
        ("mixtral", {"num_local_experts": 0}, "num_local_experts must be an integer of at least 1"),
        ("qwen3-moe", {"mlp_only_layers": [7]}, "mlp_only_layers must list layers from 0 to 2"),
        ("llama4", {"no_rope_layers": [1, 2, 1, 0]}, r"no_rope_layers must list 4 \(num_hidden_layers\) of 1 and 0"),
        ("llama4", {"moe_layers": [4]}, "moe_layers must list layers from 0 to 3"),
        ("llama4", {"layer_types": ["sliding_attention"] * 4}, "of 'full_attention' and 'chunked_attention'"),
    ],
)
def test_configurations_that_cannot_be_are_refused(
    tmp_path: Path, variant: str, fields: dict[str, Any], message: str
) -> None:
    folder = save(make(variant), tmp_path)
    rewrite(folder, load_file(folder / "model.safetensors"), **fields)
    with pytest.raises(ModelError, match=message):
        ModelRun(folder)
