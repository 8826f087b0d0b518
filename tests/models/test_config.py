"""What a configuration may say, in which dialect, and how everything else is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from least import least, required

from headrace.core.errors import ModelError
from headrace.layers.base import BuildContext
from headrace.layers.rope import RopeSpec
from headrace.models.config import Fields
from headrace.models.gemma3 import _ropes
from headrace.models.phi3 import _rope
from headrace.models.registry import ARCHITECTURES, architecture_of, build_model
from headrace.models.rope_config import read_rope
from headrace.ops.table import select_ops

CTX = BuildContext(ops=select_ops("cpu", torch.float32))


def build(architecture: str = "LlamaForCausalLM", **changes: Any):
    return build_model(least(architecture, **changes), CTX)


def longrope(kind: str = "longrope", **changes: Any) -> dict[str, Any]:
    factors = {"short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [1.0, 2.0, 4.0, 8.0]}
    return {"type": kind, **factors, "original_max_position_embeddings": 32, **changes}


def deci(attention: dict[str, Any], ffn: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    return [{"attention": attention, "ffn": {"no_op": True} if ffn is None else ffn}] * 2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_least_that_a_configuration_must_say(architecture):
    model = build(architecture)
    assert (model.vocab_size, model.max_positions) == (50, 64)
    assert len(model.cache_specs()) == (0 if model.reads_whole_prompts else 2)
    for name in required(architecture):
        with pytest.raises(ModelError, match=f"{architecture}[^:]*: the configuration lacks '{name}'"):
            build(architecture, **{name: "gone"})


def test_defaults_that_follow_from_other_fields():
    (spec, _) = build(head_dim=None, num_key_value_heads="gone").cache_specs()
    assert (spec.n_kv_heads, spec.head_dim) == (4, 6)
    for architecture in ("Mistral", "Qwen2", "Phi3", "Nemotron", "Exaone4"):
        assert (
            build(f"{architecture}ForCausalLM", head_dim="gone", partial_rotary_factor=0.34).cache_specs()[0].head_dim
            == 6
        )
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
        (
            "LlamaForCausalLM",
            {"rope_scaling": {"type": "su"}},
            r"rope_type must be 'default' or .*'longrope', got 'su'",
        ),
        ("LlamaForCausalLM", {"rope_scaling": {"rope_type": "longrope"}}, r"lacks 'original_max_position_embedd"),
        ("LlamaForCausalLM", {"rope_scaling": {"type": "linear"}}, r"lacks 'factor'"),
        ("LlamaForCausalLM", {"rope_scaling": {"type": "dynamic", "factor": 2, "alpha": 9}}, r"no parameter alpha"),
        ("LlamaForCausalLM", {"partial_rotary_factor": 0.4}, r"0.4 of head_dim 8 must be an even number"),
        (
            "LlamaForCausalLM",
            {"partial_rotary_factor": 2},
            r"2 of head_dim 8 must be an even number of values, at most",
        ),
        ("MistralForCausalLM", {"hidden_act": "gelu"}, r"hidden_act must be 'silu'"),
        ("Qwen2ForCausalLM", {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}, r"got 'mrope'"),
        ("NemotronForCausalLM", {"hidden_act": "silu"}, r"hidden_act must be 'relu2', got 'silu'"),
        ("NemotronForCausalLM", {"head_dim": 6}, r"0.5 of head_dim 6 must be an even number"),
        ("DeciLMForCausalLM", {"block_configs": [{}]}, r"block_configs must list 2 .* objects"),
        ("DeciLMForCausalLM", {"block_configs": [{}] * 2}, r"block_configs\[0\].attention.*lacks 'n_heads_in_group'"),
        ("DeciLMForCausalLM", {"block_configs": deci({"n_heads_in_group": 3})}, r"= 3 does not divide num_att.* = 4"),
        (
            "DeciLMForCausalLM",
            {"block_configs": deci({"no_op": True, "window_length": 8})},
            r"window_length = 8 is not",
        ),
        ("DeciLMForCausalLM", {"block_configs": deci({"no_op": 1})}, r"attention: no_op must be true or false"),
        ("DeciLMForCausalLM", {"block_configs": deci({"no_op": True}, {})}, r"\[0\].ffn: .*lacks 'ffn_mult'"),
        ("DeciLMForCausalLM", {"block_configs": deci({"no_op": True}, {"gated": False})}, r"gated = false is not"),
        (
            "DeciLMForCausalLM",
            {"block_configs": deci({"no_op": True}, {"moe": {"n": 4}})},
            r"moe = .* is not supported",
        ),
        ("DeciLMForCausalLM", {"block_configs": deci({"no_op": True}, {"hidden_act": "relu"})}, r"must be 'silu'"),
        (
            "DeepseekV3ForCausalLM",
            {"num_key_value_heads": 2},
            r"num_key_value_heads = 2 must equal num_attention_heads",
        ),
        ("DeepseekV3ForCausalLM", {"n_group": 16}, r"n_routed_experts = 16 in n_group = 16 .* of 2 experts or more"),
        ("DeepseekV3ForCausalLM", {"num_experts_per_tok": 9}, r"num_experts_per_tok = 9 is more than the 4 groups"),
        ("DeepseekV3ForCausalLM", {"scoring_func": "softmax"}, r"scoring_func must be 'sigmoid', got 'softmax'"),
        ("DeepseekV3ForCausalLM", {"topk_method": "greedy"}, r"topk_method must be 'noaux_tc', got 'greedy'"),
        ("Exaone4ForCausalLM", {"sliding_window_pattern": "LLXG"}, r"must be an integer or of L and G, got 'LLXG'"),
        ("Exaone4ForCausalLM", {"sliding_window_pattern": ""}, r"must be an integer or of L and G, got ''"),
        ("Exaone4ForCausalLM", {"sliding_window_pattern": 0}, r"sliding_window_pattern must be an integer of at least"),
        (
            "Exaone4ForCausalLM",
            {"sliding_window": None, "layer_types": ["sliding_attention"] * 2},
            r"there is no sliding_window",
        ),
        ("Phi3ForCausalLM", {"rope_scaling": longrope(long_factor=[1.0] * 3)}, r"long_factor must be a list of 4"),
        ("Phi3ForCausalLM", {"rope_scaling": longrope(short_factor=[1, 0, 1, 1])}, r"short_factor must be a list of 4"),
        ("Phi3ForCausalLM", {"rope_scaling": longrope(short_factor=None)}, r"lacks 'short_factor'"),
        ("Phi3ForCausalLM", {"rope_scaling": longrope(short_mscale=1.1)}, r"'longrope' has no parameter short_mscale"),
        (
            "Phi3ForCausalLM",
            {"rope_scaling": longrope(original_max_position_embeddings=None)},
            r"lacks 'original_max_position_embeddings'",
        ),
        (
            "Phi3ForCausalLM",
            {"rope_scaling": longrope(original_max_position_embeddings=1)},
            r"original_max_position_embeddings must be at least 2, got 1",
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
        build_model(least("", architectures=[]), CTX)
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
    assert windows("Qwen2ForCausalLM", 3, sliding_window=8, max_window_layers=1) == [None] * 3
    assert windows("Qwen2ForCausalLM", 3, use_sliding_window=True, sliding_window=8, max_window_layers=2) == [
        None,
        None,
        8,
    ]
    kinds = ["full_attention", "sliding_attention"]
    assert windows("Gemma3ForCausalLM", 2, sliding_window=8, layer_types=kinds) == [None, 8]


@pytest.mark.parametrize(
    ("architecture", "unset"), [("MistralForCausalLM", 4096), ("Phi3ForCausalLM", None)]
)  # fmt: skip
def test_windows_that_all_layers_share(architecture, unset):
    long = {"max_position_embeddings": 8192}
    assert windows(architecture, 2, **long) == [unset] * 2
    assert windows(architecture, 2, **long, sliding_window=None) == [None] * 2
    assert windows(architecture, 2, **long, sliding_window=8191) == [8191] * 2
    assert windows(architecture, 2, **long, sliding_window=8192) == [None] * 2, "no sequence outgrows it"


def test_mistral_may_say_which_layers_slide():
    kinds = ["full_attention", "sliding_attention"]
    assert windows("MistralForCausalLM", 2, sliding_window=8, layer_types=kinds) == [None, 8]


def test_which_exaone_layers_slide_and_which_are_rotated():
    def layers(**changes: Any) -> str:
        model = build("Exaone4ForCausalLM", num_hidden_layers=6, **changes)
        windows = [getattr(spec, "window", None) for spec in model.cache_specs()]
        turned = [layer.attention._rope is CTX.ops.rope for layer in model.layers]
        return " ".join(
            f"{window or 'full'}{'' if turns else ' NoPE'}," for window, turns in zip(windows, turned, strict=True)
        )

    lllg = "8, 8, 8, full NoPE, 8, 8,"
    assert layers(sliding_window=8) == layers(sliding_window=8, sliding_window_pattern=4) == lllg
    assert layers(sliding_window=8, sliding_window_pattern="LLLG") == "8, 8, 8, full NoPE, 8, full NoPE,"
    assert layers(sliding_window=8, sliding_window_pattern="LG") == "8, full NoPE, " * 2 + "8, full NoPE,"
    assert layers() == lllg.replace("8", "4096")
    for pattern in (4, "LLLG", 0, None):
        assert layers(sliding_window=None, sliding_window_pattern=pattern) == " ".join(["full,"] * 6)
    kinds = ["full_attention", *["sliding_attention"] * 5]
    assert layers(sliding_window=8, layer_types=kinds, sliding_window_pattern=None) == "full NoPE, 8, 8, 8, 8, 8,"


def phi_rope(**config: Any) -> RopeSpec:
    return _rope(Fields(config, "test"), 8, 64)


@pytest.mark.parametrize("kind", ["longrope", "su", "yarn"])
def test_long_rope_under_all_its_names(kind):
    spec = phi_rope(rope_scaling=longrope(kind))
    assert (spec.kind, spec.factor, spec.original_max_positions) == ("longrope", 2.0, 32)
    assert (spec.short_factors, spec.long_factors) == ((1.0, 1.5, 2.0, 3.0), (1.0, 2.0, 4.0, 8.0))
    new = longrope(rope_type=kind, rope_theta=10000.0)
    assert phi_rope(rope_parameters={name: value for name, value in new.items() if name != "type"}) == spec
    # In the files of the hub the original length stands at the top.
    top = longrope(kind, original_max_position_embeddings=None)
    assert phi_rope(rope_scaling=top, original_max_position_embeddings=32) == spec
    given = phi_rope(rope_scaling=longrope(kind, factor=4.0, attention_factor=1.5))
    assert (given.factor, given.attention_factor) == (4.0, 1.5)


def test_phi_4_has_the_plain_rope():
    assert phi_rope(rope_scaling=None, rope_theta=250000, original_max_position_embeddings=64) == RopeSpec(
        "default", 250000.0, 64, original_max_positions=64
    )
    assert phi_rope(rope_scaling=None, partial_rotary_factor=0.75).partial == 0.75


def test_decilm_layers_are_what_their_own_entry_says():
    both = {"attention": {"n_heads_in_group": 4}, "ffn": {"ffn_mult": 40.0}}
    linear = {"attention": {"replace_with_linear": True}, "ffn": {"replace_with_linear": True}}
    gone = {"attention": {"no_op": True}, "ffn": {"no_op": True}}
    model = build("NemotronNASForCausalLM", num_hidden_layers=3, block_configs=[both, linear, gone])
    assert [spec.n_kv_heads for spec in model.cache_specs()] == [1]
    shapes = {name.removeprefix("model.layers."): shape for name, shape in model.tensor_shapes().items()}
    # 40 * 2/3 * 24 is 640, which is rounded up to a multiple of 256.
    assert shapes["0.mlp.gate_proj.weight"] == (768, 24)
    assert (shapes["1.self_attn.linear_attn.weight"], shapes["1.mlp.linear_mlp.weight"]) == ((24, 24), (24, 24))
    assert {name for name in shapes if name.startswith("1.")} == {
        "1.input_layernorm.weight", "1.self_attn.linear_attn.weight",
        "1.post_attention_layernorm.weight", "1.mlp.linear_mlp.weight",
    }  # fmt: skip
    assert not [name for name in shapes if name.startswith("2.")]


@pytest.mark.parametrize(("value", "is_tuned"), [(4, True), (True, True), (0, False), (False, False), (None, True)])
def test_llama_4_may_count_what_tunes_its_queries(value, is_tuned):
    model = build("Llama4ForCausalLM", no_rope_layers=[1, 0], attn_temperature_tuning=value)
    query_keys = model.layers[1].attention._query_keys
    assert (type(query_keys).__name__ == "FarQueryKeys") == is_tuned


def test_nemotron_rotates_half_of_each_head_unless_told_otherwise():
    def rotated(**changes: Any) -> int:
        return 2 * build("NemotronForCausalLM", **changes).rope._inv_freq.shape[0]

    assert (rotated(), rotated(partial_rotary_factor=1.0), rotated(partial_rotary_factor=0.25)) == (4, 8, 2)


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
