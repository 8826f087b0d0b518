"""What a configuration may say, in which dialect, and how everything else is refused."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.core.errors import ModelError
from headrace.layers.base import BuildContext
from headrace.layers.rope import RopeSpec
from headrace.models.config import Fields
from headrace.models.gemma3 import _ropes
from headrace.models.registry import ARCHITECTURES, architecture_of, build_model
from headrace.models.rope_config import read_rope
from headrace.ops.table import select_ops

CTX = BuildContext(ops=select_ops("cpu"))
BASE = {
    "vocab_size": 50,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 64,
}


def build(architecture: str = "LlamaForCausalLM", **changes: Any):
    config = {"architectures": [architecture], **BASE, **changes}
    return build_model({name: value for name, value in config.items() if value != "gone"}, CTX)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_least_that_a_configuration_must_say(architecture):
    model = build(architecture)
    assert (model.vocab_size, model.max_positions) == (50, 64)
    assert len(model.cache_specs()) == 2
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                 "max_position_embeddings"):  # fmt: skip
        with pytest.raises(ModelError, match=f"{architecture}: the configuration lacks '{name}'"):
            build(architecture, **{name: "gone"})


def test_defaults_that_follow_from_other_fields():
    (spec, _) = build(head_dim=None, num_key_value_heads="gone").cache_specs()
    assert (spec.n_kv_heads, spec.head_dim) == (4, 6)
    assert build("Qwen3ForCausalLM", head_dim="gone").cache_specs()[0].head_dim == 128
    assert build("Gemma3ForCausalLM", head_dim="gone").cache_specs()[0].head_dim == 256


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("LlamaForCausalLM", {"hidden_act": "gelu"}, r"hidden_act must be 'silu', got 'gelu'"),
        ("Qwen3ForCausalLM", {"hidden_act": "relu"}, r"hidden_act must be 'silu'"),
        ("Gemma3ForCausalLM", {"hidden_activation": "gelu"}, r"hidden_activation must be 'gelu_pytorch_tanh'"),
        ("Gemma3ForCausalLM", {"use_bidirectional_attention": True}, r"use_bidirectional_attention = True is not supp"),
        ("Gemma3ForCausalLM", {"attn_logit_softcapping": 50.0}, r"attn_logit_softcapping = 50.0 is not supported"),
        ("LlamaForCausalLM", {"quantization_config": {"quant_method": "gptq"}}, r"quantization_config = .*gptq"),
        ("LlamaForCausalLM", {"num_key_value_heads": 3}, r"num_attention_heads = 4 must be a multiple of.* = 3"),
        ("LlamaForCausalLM", {"hidden_size": 25, "head_dim": None}, r"hidden_size = 25 must be a multiple"),
        ("LlamaForCausalLM", {"num_hidden_layers": "two"}, r"num_hidden_layers must be an integer.* got 'two'"),
        ("LlamaForCausalLM", {"vocab_size": 0}, r"vocab_size must be an integer of at least 1, got 0"),
        ("LlamaForCausalLM", {"vocab_size": True}, r"vocab_size must be an integer"),
        ("LlamaForCausalLM", {"rms_norm_eps": -1}, r"rms_norm_eps must be a number above 0, got -1"),
        ("LlamaForCausalLM", {"rms_norm_eps": float("nan")}, r"rms_norm_eps must be a number"),
        ("LlamaForCausalLM", {"attention_bias": 1}, r"attention_bias must be true or false, got 1"),
        ("LlamaForCausalLM", {"rope_scaling": [1]}, r"rope_scaling must be an object"),
        ("LlamaForCausalLM", {"rope_scaling": {"type": "su"}}, r"rope_type must be 'default' or .*'yarn', got 'su'"),
        ("LlamaForCausalLM", {"rope_scaling": {"rope_type": "longrope"}}, r"rope_type must be .*got 'longrope'"),
        ("LlamaForCausalLM", {"rope_scaling": {"type": "linear"}}, r"lacks 'factor'"),
        ("LlamaForCausalLM", {"rope_scaling": {"type": "dynamic", "factor": 2, "alpha": 9}}, r"no parameter alpha"),
        ("LlamaForCausalLM", {"partial_rotary_factor": 0.5}, r"0.5 of head_dim 6 must be an even number"),
        (
            "LlamaForCausalLM",
            {"partial_rotary_factor": 2},
            r"2 of head_dim 6 must be an even number of values, at most",
        ),
        ("Qwen3ForCausalLM", {"layer_types": ["full_attention"]}, r"layer_types must list 2 \(num_hidden_layers\)"),
        ("Qwen3ForCausalLM", {"layer_types": ["full_attention", "chunked"]}, r"layer_types must list 2"),
        ("Qwen3ForCausalLM", {"layer_types": ["sliding_attention"] * 2}, r"there is no sliding_window"),
    ],
)
def test_what_is_refused(architecture, changes, message):
    with pytest.raises(ModelError, match=message):
        build(architecture, **changes)


def test_names_that_are_no_architecture():
    with pytest.raises(ModelError, match=r"'LamaForCausalLM' is not supported.*Did you mean 'LlamaForCausalLM'"):
        build("LamaForCausalLM")
    with pytest.raises(ModelError, match="names no architecture"):
        build_model(BASE, CTX)
    assert architecture_of({"architectures": ["LLaMAForCausalLM"]}) == "LlamaForCausalLM"


def windows(architecture: str, n_layers: int, **changes: Any) -> list[int | None]:
    specs = build(architecture, num_hidden_layers=n_layers, **changes).cache_specs()
    return [getattr(spec, "window", None) for spec in specs]


def test_which_layers_slide():
    assert windows("Qwen3ForCausalLM", 3, sliding_window=8, max_window_layers=1) == [None] * 3
    assert windows("Qwen3ForCausalLM", 3, use_sliding_window=True, sliding_window=8, max_window_layers=1) == [
        None,
        8,
        8,
    ]
    assert windows("Qwen3ForCausalLM", 2, use_sliding_window=True, max_window_layers=0) == [4096, 4096]
    assert windows("Gemma3ForCausalLM", 7, sliding_window=8) == [8, 8, 8, 8, 8, None, 8]
    assert windows("Gemma3ForCausalLM", 4, sliding_window=8, sliding_window_pattern=2) == [8, None, 8, None]
    kinds = ["full_attention", "sliding_attention"]
    assert windows("Gemma3ForCausalLM", 2, sliding_window=8, layer_types=kinds) == [None, 8]


def rope(config: dict[str, Any]) -> RopeSpec:
    return read_rope(Fields(config, "test"), head_dim=32, max_positions=256)


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 32},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 20.0},
    ],
)  # fmt: skip
def test_both_dialects_read_alike(parameters):
    new = rope({"rope_parameters": {**parameters, "rope_theta": 5e5, "partial_rotary_factor": 0.5}})
    old = {("type" if name == "rope_type" else name): value for name, value in parameters.items()}
    top = {"rope_theta": 5e5, "partial_rotary_factor": 0.5}
    assert rope({**top, "rope_scaling": old}) == new
    assert rope({**top, "rope_scaling": parameters}) == new
    assert (new.kind, new.theta, new.partial) == (parameters["rope_type"], 5e5, 0.5)
    assert rope({}) == RopeSpec("default", 10000.0, 256, original_max_positions=256)


def test_yarn_factor_and_original_length_have_defaults():
    spec = rope({"rope_scaling": {"type": "yarn"}, "original_max_position_embeddings": 64})
    assert (spec.factor, spec.original_max_positions) == (4.0, 64)


def test_gemma_ropes_in_both_dialects():
    linear = {"rope_type": "linear", "factor": 8.0}
    new = {
        "full_attention": {**linear, "rope_theta": 2e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
    }
    old = {"rope_theta": 2e6, "rope_local_base_freq": 3e4, "rope_scaling": linear}
    full, sliding = _ropes(Fields({"rope_parameters": new}, "test"), 32, 256)
    assert _ropes(Fields(old, "test"), 32, 256) == (full, sliding)
    assert (full.kind, full.factor, full.theta, sliding.kind, sliding.theta) == ("linear", 8.0, 2e6, "default", 3e4)
    full, sliding = _ropes(Fields({}, "test"), 32, 256)
    assert (full.theta, sliding.theta) == (1e6, 1e4)
