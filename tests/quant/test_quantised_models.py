"""Models with weights in blocks against the same models over the values of those weights."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace import LLM, SamplingParams
from headrace.core.errors import ConfigError
from headrace.eval import tiny
from headrace.layers.base import BuildContext, Weight
from headrace.models.registry import build_model
from headrace.ops.reference.block_linear import round_rows
from headrace.ops.reference.linear import ReferenceLinear
from headrace.ops.reference.round_blocks import round_blocks
from headrace.ops.table import select_ops
from headrace.quant.formats import INT4, INT8
from headrace.quant.schemes import NO_SCHEME, AtLoad, FromFile
from headrace.weights.checkpoint import open_checkpoint
from parity.harness import ModelRun
from plain_weights import plain, set_plain
from tiny_text import write_tokenizer
from weights.forms import FORMS, requantise, with_mxfp4_experts
from weights.gguf_files import BLOCK_TYPES, write_gguf

PROMPT = [(7 * i) % 45 + 3 for i in range(60)]
MIXED = {"attn_q": "Q4_0", "attn_k": "Q4_0", "attn_v": "Q8_0", "ffn_gate": "Q5_0", "token_embd": "Q5_1"}


class RoundedLinear(ReferenceLinear):
    """Dense products with activations rounded as in blocks, but for weights of ``plain_height`` outputs."""

    def __init__(self, plain_height: int = 0) -> None:
        self._plain_height = plain_height

    def apply(self, x: torch.Tensor, weight: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if weight.shape[0] == self._plain_height:
            return super().apply(x, weight, *args, **options)
        rounded = round_rows(x)
        near = (rounded.numbers * rounded.scales.unsqueeze(2)).flatten(1)[:, : x.shape[1]]
        return super().apply(near, weight, *args, **options)


def logprobs(path: Path, run: ModelRun, model: Any) -> torch.Tensor:
    run.model = model
    return run.logprobs(PROMPT)


def weights(model: Any) -> list[Weight]:
    return [parameter for parameter in model.parameters() if isinstance(parameter, Weight)]


def in_blocks_and_dense(path: Path, scheme: Any) -> tuple[Any, Any]:
    """A model with weights in blocks, and one of their values whose products round activations alike: of the head where
    that is in blocks too, and none where weights are floats of few bits."""
    checkpoint = open_checkpoint(path)
    ops = select_ops("cpu", torch.float32)
    ctx = BuildContext(ops, scheme=scheme or FromFile(checkpoint))
    model = build_model(checkpoint.config(), ctx)
    model.load(checkpoint)
    rounded = RoundedLinear(0 if model.head.weight.formats else model.head.weight.shape[0])
    floats = any(form.codes == "e4m3" for weight in weights(model) for form in weight.formats.values())
    linear = ReferenceLinear() if floats else rounded
    dense = build_model(checkpoint.config(), replace(ctx, ops=replace(ops, linear=linear), scheme=NO_SCHEME))
    dense.load(checkpoint)
    checkpoint.close()
    return model, dense


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.no_grad():
        return tiny.save(tiny.make("qwen2"), tmp_path_factory.mktemp("qwen2"))


@pytest.mark.parametrize("form", [INT8, INT4], ids=["int8", "int4"])
def test_rounded_at_load_computes_what_the_rounded_values_do(form, folder):
    model, dense = in_blocks_and_dense(folder, AtLoad(form, round_blocks))
    for one, other in zip(weights(model), weights(dense), strict=True):
        values = plain_values(one)
        assert 0 < (values - plain(other)).square().mean() < (1e-2 if form is INT4 else 5e-5) * values.square().mean()
        set_plain(other, values)
    assert_near(folder, model, dense)
    # Tables stay in 8 bits.
    assert {str(w.ops._format) for w in (model.embed.weight, model.head.weight)} == {str(INT8)}


def plain_values(weight: Weight) -> torch.Tensor:
    """Of one format or several."""
    if not isinstance(weight.data, list):
        return plain(weight)
    parts = zip(weight.ops._parts, weight.data, strict=True)
    return torch.cat([ops.embed(torch.arange(last - first), data) for (first, last, ops), data in parts])


def assert_near(path: Path, model: Any, dense: Any, n_rows: int = len(PROMPT)) -> None:
    """Where fp32 noise tips a number of an activation over, a logprob moves by a step, and those behind it move along;
    elsewhere it stays, in the first ``n_rows`` mostly."""
    run = ModelRun(path)
    ours, theirs = logprobs(path, run, model), logprobs(path, run, dense)
    assert (ours - theirs)[:n_rows].abs().median() < 2e-5
    assert (ours - theirs).abs().mean() < 0.05


@pytest.mark.parametrize("kind", [*BLOCK_TYPES, "mixed"])
def test_blocks_of_a_file_stay_as_they_are(kind, tmp_path):
    kinds = MIXED if kind == "mixed" else None
    path = write_gguf(tmp_path / "m.gguf", "llama", kind="Q4_1" if kinds else kind, kinds=kinds, tied=True)
    model, dense = in_blocks_and_dense(path, None)
    assert model.n_bytes < 0.6 * dense.n_bytes
    for one, other in zip(weights(model), weights(dense), strict=True):
        assert torch.equal(plain_values(one), plain(other))
    assert_near(path, model, dense)


@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if form.kept and not name.endswith("-16")])
def test_forms_of_folders_stay_as_they_are(name, folder, tmp_path):
    if name.startswith("ct-"):
        pytest.importorskip("compressed_tensors", reason="writes the files of that form")
    path = requantise(folder, tmp_path, name)
    model, dense = in_blocks_and_dense(path, None)
    assert all("bits in groups" in form for form in list(model.weight_formats())[1:])
    near = 1e-6 if FORMS[name].tolerance else 0.0
    for one, other in zip(weights(model), weights(dense), strict=True):
        assert (plain_values(one) - plain(other)).abs().max() <= near
    assert_near(path, model, dense, n_rows=4)


@pytest.mark.parametrize("name", ["gptq-4", "modelopt-fp8", "modelopt-nvfp4"])
def test_experts_in_a_form_of_a_folder(name, tmp_path):
    with torch.no_grad():
        plain_folder = tiny.save(tiny.make("qwen3-moe", moe_intermediate_size=64), tmp_path / "plain")
    path = requantise(plain_folder, tmp_path / name, name)
    model, dense = in_blocks_and_dense(path, None)
    form = str(next(iter(weights(model)[1].formats.values())))
    assert set(model.weight_formats()) == {form, "float32"}
    run = ModelRun(path)
    # Experts of floats round no activations.
    assert (logprobs(path, run, model) - logprobs(path, run, dense)).abs().mean() < 0.05


def test_experts_of_gpt_oss_stay_in_mxfp4(tmp_path):
    with torch.no_grad():
        plain_folder = tiny.save(tiny.make("gpt-oss"), tmp_path / "plain")
    path = with_mxfp4_experts(plain_folder, tmp_path / "mxfp4")
    model, dense = in_blocks_and_dense(path, None)
    assert model.weight_formats()["4 bits in groups of 32 as e2m1 (fp32 scales)"] == 8
    for one, other in zip(weights(model), weights(dense), strict=True):
        if one.formats:
            assert torch.equal(expert_values(one), expert_values(other))
    # Nothing but the experts rounds activations; their weights here are large, and so is what that moves.
    run = ModelRun(path)
    plain_run = run.logprobs(PROMPT)
    assert 0 < (logprobs(path, run, model) - plain_run).abs().mean() < 0.1


def expert_values(weight: Weight) -> torch.Tensor:
    """Of all experts, one below another."""
    one = weight.ops._one
    return torch.cat([one.embed(torch.arange(expert.n_out), expert) for expert in weight.data.experts])


def test_what_is_unpacked_is_said(folder, tmp_path, caplog):
    path = requantise(folder, tmp_path / "desc-act", "gptq-4-desc-act")
    caplog.set_level(logging.WARNING, "headrace")
    args = {"skip_tokenizer_init": True, "dtype": "float32", "kv_cache_config": {"max_tokens": 64}}
    with LLM(path, **args) as llm:
        assert set(llm.effective_config["weight_formats"]) == {"float32"}
    assert "21 tensors are unpacked while they are read (GPTQ in 4 bits: groups are not of neighbours" in caplog.text
    caplog.clear()
    kept = requantise(folder, tmp_path / "kept", "gptq-4")
    with LLM(kept, **args) as llm:
        assert llm.effective_config["weight_formats"]["4 bits in groups of 32"] > 0
    assert not caplog.text
    with LLM(kept, **{**args, "dtype": "float16"}):
        assert [r.message for r in caplog.records if "dtype float16: torch's reference operators" in r.message] != []
    caplog.clear()
    with LLM(kept, **args, quant_config={"quant_algo": "none"}) as llm:
        assert set(llm.effective_config["weight_formats"]) == {"float32"}
    assert "(GPTQ in 4 bits: 4 bits in groups of 32)" in caplog.text


def test_a_weight_of_blocks_and_floats_is_all_floats(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", "llama", kind="Q4_1", kinds={"ffn_up": "F16", "attn_output": "F32"})
    model, dense = in_blocks_and_dense(path, None)
    # Gate and up of two layers, the output of attention.
    assert model.weight_formats() == {"4 bits in groups of 32 with minima": 9, "float32": 6}
    for one, other in zip(weights(model), weights(dense), strict=True):
        assert torch.equal(plain_values(one), plain(other))


def test_what_cannot_be_kept_is_refused(folder, tmp_path):
    floats = write_gguf(tmp_path / "m.gguf", "llama", kind="F16")
    for model in (folder, floats):
        with pytest.raises(ConfigError, match=r"quant_algo 'gguf' keeps the blocks of a GGUF file.*'int8'"):
            LLM(model, quant_config={"quant_algo": "gguf"}, skip_tokenizer_init=True)
    with pytest.raises(ConfigError, match="quant_algo"):
        LLM(folder, quant_config={"quant_algo": "int3"})


def test_the_engine_says_how_weights_are_kept(folder):
    write_tokenizer(folder, 317)
    with LLM(folder, quant_config={"quant_algo": "int4"}, kv_cache_config={"max_tokens": 256}) as llm:
        llm.generate([PROMPT], SamplingParams(max_tokens=3), use_tqdm=False)
        found = llm.effective_config["weight_formats"]
    assert found == {"4 bits in groups of 32": 21, "8 bits in groups of 32": 2}
