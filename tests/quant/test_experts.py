"""Models whose experts are in blocks: their values, and what is computed with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import MODEL_ARCH, GGMLQuantizationType

from headrace import LLM, SamplingParams
from headrace.eval import tiny
from headrace.layers.base import BuildContext, Weight
from headrace.layers.moe import Experts, SigmoidRouter, SoftmaxRouter
from headrace.models.registry import build_model
from headrace.ops.native import core
from headrace.ops.reference.round_blocks import round_blocks
from headrace.ops.table import select_ops
from headrace.quant.formats import INT4, INT8
from headrace.quant.schemes import NO_SCHEME, AtLoad, FromFile
from headrace.weights.checkpoint import Checkpoint, open_checkpoint
from headrace.weights.dummy import write_safetensors
from parity.harness import ModelRun
from tiny_text import write_tokenizer
from weights.forms import is_matrix, requantise
from weights.gguf_convert import convert
from weights.gguf_convert_hub import convert_hub, tiny_folder

pytestmark = pytest.mark.skipif(not core.is_available(), reason=f"no native core: {core.reason()}")

PROMPT = [(7 * i) % 290 + 3 for i in range(60)]


def loaded(checkpoint: Checkpoint, scheme: Any, forced: str | None = None) -> Any:
    ctx = BuildContext(select_ops("cpu", torch.float32, forced), scheme=scheme)
    model = build_model(checkpoint.config(), ctx)
    model.load(checkpoint)
    return model


def expert_weights(model: Any) -> list[Weight]:
    layers = [layer for layer in model.sublayers() if isinstance(layer, Experts)]
    assert layers
    return [weight for layer in layers for weight in (layer.gate_up, layer.down)]


def values(weight: Weight) -> torch.Tensor:
    """Of the weights of all experts, one below another, as the core keeps them."""
    one = weight.ops._one
    return torch.cat([one.embed(torch.arange(expert.n_out), expert) for expert in weight.data.experts])


def logprobs(path: Path, model: Any, forced: str | None = None) -> torch.Tensor:
    run = ModelRun(path)
    run.ops, run.model = select_ops("cpu", torch.float32, forced), model
    return run.logprobs(PROMPT)


@pytest.mark.parametrize("form", [INT8, INT4], ids=["int8", "int4"])
@pytest.mark.parametrize("variant", ["mixtral", "qwen3-moe", "gpt-oss", "llama4", "deepseek-v3", "nemotron-h-experts"])
def test_experts_are_rounded_at_load(variant: str, form: Any, tmp_path: Path) -> None:
    folder = tiny.save(tiny.make(variant), tmp_path)
    checkpoint = open_checkpoint(folder)
    model, dense = loaded(checkpoint, AtLoad(form, round_blocks)), loaded(checkpoint, NO_SCHEME)
    for one, other in zip(expert_weights(model), expert_weights(dense), strict=True):
        assert set(one.formats.values()) == {form}
        assert torch.equal(values(one), round_blocks(values(other), form).values())
    # The same bits of products; activations between them may differ in the last bit, and then a number is rounded the
    # other way.
    ours = logprobs(folder, model)
    theirs = logprobs(folder, loaded(checkpoint, AtLoad(form, round_blocks), "reference"), "reference")
    moved = (ours - logprobs(folder, dense)).abs().mean()
    assert 1e-3 < moved < (0.5 if form is INT8 else 2.0)
    assert (ours - theirs).abs().mean() < 0.2 * moved
    routers = [layer for layer in model.sublayers() if isinstance(layer, SoftmaxRouter | SigmoidRouter)]
    assert routers
    assert not any(router.logits.weight.formats for router in routers)


def test_what_stays_in_floats_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = open_checkpoint(tiny.save(tiny.make("deepseek-v3"), tmp_path))
    loaded(checkpoint, NO_SCHEME)
    assert not caplog.messages
    loaded(checkpoint, AtLoad(INT8, round_blocks))
    assert [message for message in caplog.messages if "kv_b_proj stays in torch.float32" in message]


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_experts_of_a_gguf_file_stay_in_its_blocks(kind: str, tmp_path: Path) -> None:
    with torch.no_grad():
        model = tiny.make("qwen3-moe-normalised", mlp_only_layers=[], moe_intermediate_size=64)
    path = convert(model, MODEL_ARCH.QWEN3MOE, tmp_path / "m.gguf", experts=GGMLQuantizationType[kind])
    checkpoint = open_checkpoint(path)
    kept, dense = loaded(checkpoint, FromFile(checkpoint)), loaded(checkpoint, NO_SCHEME)
    for one, other in zip(expert_weights(kept), expert_weights(dense), strict=True):
        assert one.formats
        assert torch.equal(values(one), values(other))
    assert sum(w.nbytes for w in expert_weights(kept)) < 0.35 * sum(w.nbytes for w in expert_weights(dense))
    assert (logprobs(path, kept) - logprobs(path, dense)).abs().mean() < 0.2


@pytest.mark.parametrize("kind", ["MXFP4", "Q8_0"])
@pytest.mark.parametrize(
    ("variant", "arch", "width"),
    [
        ("gpt-oss", MODEL_ARCH.GPT_OSS, "intermediate_size"),
        ("llama4", MODEL_ARCH.LLAMA4, "intermediate_size"),
        ("qwen3-next", MODEL_ARCH.QWEN3NEXT, "moe_intermediate_size"),
    ],
)
def test_experts_that_are_put_together_stay_in_blocks(
    variant: str, arch: MODEL_ARCH, width: str, kind: str, tmp_path: Path
) -> None:
    folder = tiny_folder(tmp_path, variant, **{width: 64})
    checkpoint = open_checkpoint(convert_hub(folder, arch, tmp_path / "m.gguf", experts=GGMLQuantizationType[kind]))
    kept, dense = loaded(checkpoint, FromFile(checkpoint)), loaded(checkpoint, NO_SCHEME)
    for one, other in zip(expert_weights(kept), expert_weights(dense), strict=True):
        assert one.formats
        assert torch.equal(values(one), values(other))


def with_separate_experts(plain: Path, folder: Path) -> Path:
    """Llama 4 with a matrix for each product of each expert, output-major, as quantised exports have it."""
    checkpoint, tensors = open_checkpoint(plain), {}
    for name in checkpoint.names():
        base, _, part = name.rpartition(".experts.")
        if not base:
            tensors[name] = checkpoint.tensor(name)
            continue
        for e, expert in enumerate(checkpoint.tensor(name)):
            is_pair = part == "gate_up_proj"
            ends, matrices = (("gate_proj", "up_proj"), expert.T.chunk(2)) if is_pair else ((part,), (expert.T,))
            for end, matrix in zip(ends, matrices, strict=True):
                tensors[f"{base}.experts.{e}.{end}.weight"] = matrix.contiguous()
    write_safetensors(folder, checkpoint.config(), tensors)
    return folder


@pytest.mark.parametrize("variant", ["llama4", "llama4-two-experts-plain-heads"])
def test_experts_of_llama4_may_be_stored_one_by_one(variant: str, tmp_path: Path) -> None:
    plain = tiny.save(tiny.make(variant), tmp_path / "plain")
    apart = with_separate_experts(plain, tmp_path / "apart")
    assert torch.equal(ModelRun(apart).logprobs(PROMPT), ModelRun(plain).logprobs(PROMPT))


@pytest.mark.parametrize("name", ["fp8-blocks", "modelopt-fp8", "modelopt-nvfp4", "gptq-4"])
def test_quantised_experts_of_llama4_are_stored_one_by_one(name: str, tmp_path: Path) -> None:
    plain = with_separate_experts(
        tiny.save(tiny.make("llama4", intermediate_size=64), tmp_path / "plain"), tmp_path / "apart"
    )
    path = requantise(plain, tmp_path / name, name, is_matrix, tmp_path / "decoded")
    checkpoint, decoded = open_checkpoint(path), ModelRun(tmp_path / "decoded").logprobs(PROMPT)
    assert torch.equal(logprobs(path, loaded(checkpoint, NO_SCHEME)), decoded)
    kept = loaded(checkpoint, FromFile(checkpoint))
    assert all(weight.formats for weight in expert_weights(kept))
    lost = (decoded - ModelRun(plain).logprobs(PROMPT)).abs().mean()
    assert (logprobs(path, kept) - decoded).abs().mean() < 0.5 * lost


def test_the_engine_keeps_experts_in_blocks(tmp_path: Path) -> None:
    folder = tiny.save(tiny.make("mixtral"), tmp_path)
    write_tokenizer(folder, 317)
    with LLM(folder, quant_config={"quant_algo": "int8"}, kv_cache_config={"max_tokens": 256}) as llm:
        llm.generate([PROMPT], SamplingParams(max_tokens=3), use_tqdm=False)
        found = llm.effective_config["weight_formats"]
    # 3 layers: q, k, v and o, and 3 matrices of 4 experts; 2 tables; 3 routers.
    assert found == {"8 bits in groups of 32": 3 * (4 + 12) + 2, "float32": 3}
