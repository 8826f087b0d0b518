"""Every architecture in the forms that its quantised folders have: what is read is what the form decodes to, and what
stays in few bits computes the same but for the rounding of activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from headrace.eval import tiny
from headrace.layers.base import BuildContext, Weight
from headrace.models.registry import ARCHITECTURES, build_model
from headrace.ops.native import core
from headrace.ops.table import select_ops
from headrace.quant.schemes import NO_SCHEME, FromFile
from headrace.weights.checkpoint import Checkpoint, open_checkpoint
from parity.harness import ModelRun
from weights.forms import FORMS, is_matrix, requantise

PROMPT = [(7 * i) % 290 + 3 for i in range(60)]

# Widths that groups of 32 go into.
DEEPSEEK = {"q_lora_rank": 32, "v_head_dim": 16}
FAMILIES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "decilm": ({}, ("modelopt-fp8",)),
    "deepseek-v3": (DEEPSEEK, ("fp8-blocks",)),
    "exaone4": ({}, ("gptq-4", "awq")),
    "gemma3": ({}, ("ct-int4", "gptq-4")),
    "gpt-oss": ({}, ("ct-fp8-row",)),
    "llama": ({}, ("ct-fp8-row", "awq", "modelopt-nvfp4")),
    "llama4": ({}, ("ct-fp8-row",)),
    "mistral": ({}, ("awq", "ct-fp8")),
    "mixtral": ({}, ("awq", "gptq-4-zeros")),
    "mllama": ({}, ("ct-fp8-row",)),
    "nemotron": ({}, ("ct-fp8",)),
    "nemotron-h": ({}, ("modelopt-fp8",)),
    "nemotron-h-experts": (
        {"moe_intermediate_size": 64, "moe_shared_expert_intermediate_size": 64},
        ("modelopt-nvfp4",),
    ),
    "phi3": ({}, ("gptq-4", "ct-fp8-row")),
    "qwen2": ({}, ("gptq-4", "awq")),
    "qwen3": ({}, ("fp8-blocks", "awq")),
    "qwen3-moe": ({"moe_intermediate_size": 64}, ("fp8-blocks", "gptq-4")),
    "qwen3-next": ({"moe_intermediate_size": 64, "shared_expert_intermediate_size": 64}, ("fp8-blocks",)),
}
"""Variant -> changes and public forms. GPT-OSS's own, MXFP4 experts, has a test in ``test_quantised_models``."""
GENERAL = ("gptq-4", "awq", "ct-int8", "ct-fp8", "ct-mxfp4", "fp8-blocks", "modelopt-nvfp4")
QUICK = {
    ("deepseek-v3", "fp8-blocks"),
    ("nemotron-h-experts", "modelopt-nvfp4"),
    ("phi3", "gptq-4"),
    ("mixtral", "awq"),
}
UNPACKED = ("kv_b_proj", "in_proj_qkvz")
"""Latent attention reads halves of the one head by head; the other is one product with a map that is left in floats."""
EIGHT_BITS = ("ct-int8",)


def _tier(variant: str, name: str) -> Any:
    """The first form of each in the slow tier, what else publishers have, and what they might, in the full one."""
    if (variant, name) in QUICK:
        return ()
    return pytest.mark.slow if name == FAMILIES[variant][1][0] else pytest.mark.full


CASES = [
    pytest.param(variant, name, marks=_tier(variant, name))
    for variant, (_, forms) in FAMILIES.items()
    for name in dict.fromkeys((*forms, *GENERAL))
]


def loaded(checkpoint: Checkpoint, scheme: Any) -> Any:
    model = build_model(checkpoint.config(), BuildContext(select_ops("cpu", torch.float32), scheme=scheme))
    model.load(checkpoint)
    return model


def logprobs(path: Path, model: Any) -> torch.Tensor:
    run = ModelRun(path)
    run.model = model
    return run.logprobs(PROMPT)


@pytest.mark.parametrize(("variant", "name"), CASES)
def test_a_form_is_what_it_decodes_to(variant: str, name: str, tmp_path: Path) -> None:
    if name.startswith("ct-"):
        pytest.importorskip("compressed_tensors", reason="writes the files of that form")
    with torch.no_grad():
        plain = tiny.save(tiny.make(variant, **FAMILIES[variant][0]), tmp_path / "plain")
    path = requantise(plain, tmp_path / name, name, is_matrix, tmp_path / "decoded")
    checkpoint = open_checkpoint(path)
    assert checkpoint.kept()
    original, decoded = ModelRun(plain).logprobs(PROMPT), ModelRun(tmp_path / "decoded").logprobs(PROMPT)
    lost = (decoded - original).abs().mean()
    assert lost > 1e-3
    unpacked = logprobs(path, loaded(checkpoint, NO_SCHEME))
    if FORMS[name].tolerance == 0.0:
        assert torch.equal(unpacked, decoded)
    else:
        assert (unpacked - decoded).abs().mean() < 0.01 * lost
    if not core.is_available():
        return
    model = loaded(checkpoint, FromFile(checkpoint))
    kept = {tensor for part in model.parameters() if isinstance(part, Weight) for tensor in part.formats}
    stored = {tensor for tensor in checkpoint.names() if checkpoint.block_format(tensor) is not None}
    assert stored - kept == {tensor for tensor in stored if any(module in tensor for module in UNPACKED)}
    moved = (logprobs(path, model) - decoded).abs().mean()
    # Floats round no activations; whole numbers round them to 8 bits, as finely as weights of 8 bits are.
    assert moved < lost * (2.0 if name in EIGHT_BITS else 1e-3 if "fp8" in name else 0.5)


def test_every_architecture_that_generates_is_here() -> None:
    heads = {name for name in ARCHITECTURES if name.endswith(("CausalLM", "ConditionalGeneration"))}
    assert {tiny.architecture(variant) for variant in FAMILIES} == heads
