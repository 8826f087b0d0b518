"""Loading a model: everything is checked before anything is taken, and errors name file, tensor and shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from least import least

from headrace.core.errors import CheckpointError, EngineError
from headrace.layers.base import BuildContext
from headrace.models.base import Model
from headrace.models.registry import ARCHITECTURES, build_model
from headrace.ops.batch import Batch, GroupBatch
from headrace.ops.blocks import block_layout
from headrace.ops.table import select_ops
from headrace.weights.checkpoint import open_checkpoint
from headrace.weights.dummy import DummyCheckpoint, write_safetensors
from plain_weights import plain


def build(architecture: str = "LlamaForCausalLM", dtype: torch.dtype = torch.float32, **changes: Any) -> Model:
    return build_model(least(architecture, **changes), BuildContext(ops=select_ops("cpu", torch.float32), dtype=dtype))


def weights(model: Model) -> dict[str, torch.Tensor]:
    dummy = DummyCheckpoint({}, model.tensor_shapes(), seed=1, dtype=torch.float32, zero_centred=model.zero_centred())
    return {name: dummy.tensor(name) for name in dummy.names()}


def load(model: Model, tensors: dict[str, torch.Tensor], folder: Path, **options: Any) -> Model:
    model.load(open_checkpoint(write_safetensors(folder, {}, tensors)), **options)
    return model


def test_parameters_hold_what_the_checkpoint_says(tmp_path):
    model = build()
    tensors = weights(model)
    load(model, tensors, tmp_path)
    first = model.layers[0]
    q, k, v = (tensors[f"model.layers.0.self_attn.{x}_proj.weight"] for x in "qkv")
    assert torch.equal(plain(first.attention.qkv.weight), torch.cat((q, k, v)))
    gate, up = (tensors[f"model.layers.0.mlp.{x}_proj.weight"] for x in ("gate", "up"))
    assert torch.equal(plain(first.mlp.gate_up.weight), torch.cat((gate, up)))
    assert torch.equal(plain(model.head.weight), tensors["lm_head.weight"])


def test_names_and_size_are_those_of_the_checkpoint():
    model = build(tie_word_embeddings=True, attention_bias=True)
    shapes = model.tensor_shapes()
    assert "lm_head.weight" not in shapes
    assert shapes["model.layers.1.self_attn.k_proj.bias"] == (16,)
    assert model.n_params == sum(torch.Size(shape).numel() for shape in shapes.values())
    ctx = BuildContext(ops=select_ops("cpu", torch.float32, "reference"))
    config = least("LlamaForCausalLM", tie_word_embeddings=True, attention_bias=True)
    assert build_model(config, ctx).n_bytes == 4 * model.n_params


def test_the_size_is_that_of_the_memory_taken(tmp_path):
    model = build()
    planned = model.n_bytes
    load(model, weights(model), tmp_path)
    memory = [getattr(parameter.data, "memory", parameter.data) for parameter in model.parameters()]
    assert planned == model.n_bytes == sum(tensor.nbytes for tensor in memory)


def test_fused_tensors_are_taken_as_they_are(tmp_path):
    model = build("Phi3ForCausalLM")
    shapes = {name for name in model.tensor_shapes() if name.startswith("model.layers.1.")}
    assert shapes == {
        f"model.layers.1.{name}.weight"
        for name in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj", "input_layernorm",
                     "post_attention_layernorm")
    }  # fmt: skip
    tensors = weights(model)
    load(model, tensors, tmp_path)
    assert torch.equal(plain(model.layers[0].attention.qkv.weight), tensors["model.layers.0.self_attn.qkv_proj.weight"])
    assert torch.equal(plain(model.layers[0].mlp.gate_up.weight), tensors["model.layers.0.mlp.gate_up_proj.weight"])


def test_layer_norms_bring_a_bias_and_are_stored_minus_one():
    model = build("NemotronForCausalLM")
    norms = {name for name in model.tensor_shapes() if "norm" in name}
    assert {"model.norm.bias", "model.layers.1.post_attention_layernorm.bias"} < norms
    assert model.zero_centred() == {name for name in norms if name.endswith(".weight")}


def test_progress_counts_every_byte(tmp_path):
    model = build("Qwen3ForCausalLM", torch.bfloat16)
    calls: list[tuple[int, int]] = []
    load(model, weights(model), tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert len(calls) == len(model.tensor_shapes())
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1] == (model.n_bytes, model.n_bytes)


def broken(kind: str, tensors: dict[str, torch.Tensor]) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    if kind == "missing":
        del tensors[name]
    elif kind == "shape":
        tensors[name] = torch.zeros(20, 23)
    elif kind == "dtype":
        tensors[name] = torch.zeros(20, 24, dtype=torch.int8)
    else:
        tensors["model.layers.1.mlp.up_proj.bias"] = torch.zeros(20)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"'model.layers.1.mlp.up_proj.weight' \(expected shape \[20, 24\]\) is missing"),
        ("shape", r"model.safetensors.*up_proj.weight'.*expected shape \[20, 24\], found \[20, 23\]"),
        ("dtype", r"model.safetensors: tensor 'model.layers.1.mlp.up_proj.weight' is stored as torch.int8"),
        ("leftover", r"model.safetensors: no layer of this model uses model.layers.1.mlp.up_proj.bias;"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_before_memory_is_taken(kind, message, tmp_path):
    model = build()
    tensors = weights(model)
    broken(kind, tensors)
    with pytest.raises(CheckpointError, match=message):
        load(model, tensors, tmp_path)
    assert all(parameter.data is None for parameter in model.parameters())


def test_tensors_that_carry_nothing_are_passed_over(tmp_path):
    model = build(tie_word_embeddings=True)
    tensors = weights(model)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(3)
    tensors["lm_head.weight"] = torch.zeros(50, 24)
    load(model, tensors, tmp_path)
    assert torch.equal(plain(model.head.weight), tensors["model.embed_tokens.weight"])
    untied = build()
    tensors = weights(untied)
    del tensors["lm_head.weight"]
    with pytest.raises(CheckpointError, match=r"'lm_head.weight' .* is missing"):
        load(untied, tensors, tmp_path / "untied")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_random_weights_in_half_precision_run(architecture):
    sliding = {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1}
    model = build(architecture, torch.bfloat16, **({} if architecture == "NemotronHForCausalLM" else sliding))
    shapes = model.tensor_shapes()
    model.load(DummyCheckpoint({}, shapes, seed=1, zero_centred=model.zero_centred()))
    specs = model.cache_specs()
    layers = [[i for i, spec in enumerate(specs) if spec == kind] for kind in dict.fromkeys(specs)]
    views = []
    for members in layers:
        numbers, dtype = block_layout(specs[members[0]], torch.bfloat16)
        views.append(torch.full((3, len(members), numbers), torch.nan, dtype=dtype))
    model.bind_cache(layers, views)
    group = [GroupBatch(torch.tensor([[1, 2]], dtype=torch.int32), torch.arange(32, 72)) for _ in layers]
    batch = Batch(torch.arange(40), torch.arange(40), torch.tensor([0, 40]), torch.tensor([40]), tuple(group))
    for index, members in enumerate(layers):
        batch.groups[index].metadata = select_ops("cpu", torch.float32).plan(batch, index, specs[members[0]])
    with torch.inference_mode():
        hidden = model.forward(batch)
        logits = model.logits(hidden[-2:]) if model.pooling.generates else model.pooled(hidden[-2:])
    assert hidden.shape == (40, 24)
    assert hidden.dtype == torch.bfloat16
    assert logits.shape == (2, 50 if model.pooling.generates else model.pooling.width)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


def test_caches_that_do_not_fit_are_refused():
    model = build()
    with pytest.raises(EngineError, match=r"layers without a cache: \[1\]"):
        model.bind_cache([[0]], [torch.zeros(3, 1, 2 * 2 * 32 * 8)])
    with pytest.raises(EngineError, match="group 0 has 2 layers"):
        model.bind_cache([[0, 1]], [torch.zeros(3, 1, 2 * 2 * 32 * 8)])


def test_threads_fill_what_was_allocated_in_inference_mode(tmp_path):
    model = build(attention_bias=True)
    with torch.inference_mode():
        load(model, weights(model), tmp_path, threads=3)


def test_threads_fill_the_same(tmp_path):
    model, alone = build(attention_bias=True), build(attention_bias=True)
    tensors, seen = weights(model), []
    load(model, tensors, tmp_path, threads=3, progress=lambda done, total: seen.append((done, total)))
    load(alone, tensors, tmp_path)
    for mine, other in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.equal(plain(mine), plain(other))
    assert [total for _, total in seen] == [model.n_bytes] * len(tensors)
    assert seen == sorted(seen)
    assert seen[-1][0] == model.n_bytes


@pytest.mark.parametrize("threads", [1, 3])
def test_a_read_that_fails_ends_the_load(threads):
    model = build()
    checkpoint = DummyCheckpoint({}, model.tensor_shapes(), seed=1, dtype=torch.float32)
    rows, read = checkpoint.rows, []

    def failing(name: str) -> Any:
        if name.endswith("layers.0.self_attn.k_proj.weight"):
            raise CheckpointError("the disk is gone")
        read.append(name)
        return rows(name)

    checkpoint.rows = failing
    with pytest.raises(CheckpointError, match="the disk is gone"):
        model.load(checkpoint, threads=threads)
    assert not any(name.endswith("layers.0.self_attn.v_proj.weight") for name in read)


def test_experts_are_counted_by_what_a_row_needs():
    assert build().expert_bytes() == (0, 0.0)
    config = least("MixtralForCausalLM", num_local_experts=8, num_experts_per_tok=2)
    model = build_model(config, BuildContext(ops=select_ops("cpu", torch.float32, "reference")))
    one = 3 * config["intermediate_size"] * config["hidden_size"] * 4
    assert model.expert_bytes() == (config["num_hidden_layers"] * 8 * one, 0.25)


def test_layers_behind_the_last_are_left_where_they_are(tmp_path):
    """DeepSeek-V3's files hold what predicts a second token: one more layer."""
    tensors = weights(build("DeepseekV3ForCausalLM"))
    further = {f"model.layers.2.{name}": torch.zeros(3) for name in ("eh_proj.weight", "self_attn.o_proj.weight")}
    load(build("DeepseekV3ForCausalLM"), tensors | further, tmp_path / "one")
    for number, fields in ((3, {}), (2, {"num_nextn_predict_layers": 0})):
        with pytest.raises(CheckpointError, match=f"no layer of this model uses model.layers.{number}.a"):
            load(
                build("DeepseekV3ForCausalLM", **fields),
                tensors | {f"model.layers.{number}.a": torch.zeros(3)},
                tmp_path / str(number),
            )
