"""GGUF metadata of models with experts to the fields of their ``config.json``.

Sources: ``conversion/`` (deepseek, gpt_oss, llama4, qwen) and ``src/models/`` of llama.cpp
(https://github.com/ggml-org/llama.cpp). What a file does not say follows from the architecture.
"""

from __future__ import annotations

from typing import Any

from .gguf_config_parts import common, layer_types, layers_with, sizes
from .gguf_fields import Fields

_SIGMOID = 2
"""``expert_gating_func``: LLAMA_EXPERT_GATING_FUNC_TYPE_SIGMOID of llama.cpp."""
_V3_EXPERTS, _V3_GROUPS, _V3_TOP_GROUPS = 256, 8, 4
"""DeepSeek-V3's and R1's. Their first files do not tell the groups."""
_LLAMA4_CHUNK = 8192
_PLAIN_HEADS_EXPERTS = 128
"""Llama 4 Maverick's: its queries and keys are not normed."""


def qwen3_moe(fields: Fields) -> dict[str, Any]:
    """Weights of experts are divided by their sum, as llama.cpp does for every file of this architecture."""
    return common(fields) | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_act": "silu",
        "use_sliding_window": False,
        "num_experts": fields.integer("expert_count"),
        "num_experts_per_tok": fields.integer("expert_used_count"),
        "moe_intermediate_size": fields.integer("expert_feed_forward_length"),
        "norm_topk_prob": True,
        "mlp_only_layers": [],
        "decoder_sparse_step": 1,
        "rope_theta": fields.number("rope.freq_base"),
    }


def deepseek2(fields: Fields) -> dict[str, Any]:
    if not fields.optional_integer("expert_count"):
        raise fields.error("architecture 'deepseek2' without experts is not supported")
    gating = fields.integer("expert_gating_func", 1)
    if gating != _SIGMOID:
        raise fields.error(
            f"expert_gating_func is {gating} (1, softmax, where it is missing: DeepSeek-V2); supported: {_SIGMOID},"
            " sigmoid (DeepSeek-V3)"
        )
    heads, rope_dim = fields.integer("attention.head_count"), fields.integer("rope.dimension_count")
    # Without these the file is of the older kind, whose keys and values are those of heads.
    key_dim = fields.optional_integer("attention.key_length_mla") or fields.integer("attention.key_length")
    value_dim = fields.optional_integer("attention.value_length_mla") or fields.integer("attention.value_length")
    if key_dim <= rope_dim:
        raise fields.error(f"keys of {key_dim} values, of which rope.dimension_count {rope_dim} are rotated: too few")
    return sizes(fields) | {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "hidden_act": "silu",
        "intermediate_size": fields.integer("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": rope_dim,
        "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon"),
        "q_lora_rank": fields.optional_integer("attention.q_lora_rank"),
        "kv_lora_rank": fields.integer("attention.kv_lora_rank"),
        "qk_nope_head_dim": key_dim - rope_dim,
        "qk_rope_head_dim": rope_dim,
        "v_head_dim": value_dim,
        "rope_theta": fields.number("rope.freq_base", 10_000.0),
        "rope_interleave": True,
        "first_k_dense_replace": fields.integer("leading_dense_block_count", 0, at_least=0),
        "moe_layer_freq": 1,
        "moe_intermediate_size": fields.integer("expert_feed_forward_length"),
        "num_nextn_predict_layers": 0,
        **_grouped(fields),
    }


def _grouped(fields: Fields) -> dict[str, Any]:
    """Experts chosen by sigmoid, within groups."""
    is_v3 = fields.integer("expert_count") == _V3_EXPERTS
    return {
        "n_routed_experts": fields.integer("expert_count"),
        "num_experts_per_tok": fields.integer("expert_used_count"),
        "n_shared_experts": fields.integer("expert_shared_count"),
        "n_group": fields.integer("expert_group_count", _V3_GROUPS if is_v3 else 1),
        "topk_group": fields.integer("expert_group_used_count", _V3_TOP_GROUPS if is_v3 else 1),
        "routed_scaling_factor": fields.number("expert_weights_scale", 1.0),
        "norm_topk_prob": fields.flag("expert_weights_norm", False),
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    }


def gpt_oss(fields: Fields) -> dict[str, Any]:
    config = common(fields)
    return config | {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "hidden_act": "silu",
        "intermediate_size": fields.integer("expert_feed_forward_length", config["intermediate_size"]),
        "num_local_experts": fields.integer("expert_count"),
        "num_experts_per_tok": fields.integer("expert_used_count"),
        "sliding_window": fields.integer("attention.sliding_window", 128),
        "layer_types": layer_types([layer % 2 == 0 for layer in range(config["num_hidden_layers"])]),
        "swiglu_limit": 7.0,
        "rope_theta": fields.number("rope.freq_base", 150_000.0),
    }


def llama4(fields: Fields) -> dict[str, Any]:
    config, n_experts = common(fields), fields.integer("expert_count")
    mixed = layers_with(fields, "ffn_gate_inp.weight")
    return config | {
        "architectures": ["Llama4ForCausalLM"],
        "model_type": "llama4_text",
        "hidden_act": "silu",
        "intermediate_size": fields.integer("expert_feed_forward_length"),
        "intermediate_size_mlp": config["intermediate_size"],
        "num_local_experts": n_experts,
        "num_experts_per_tok": fields.integer("expert_used_count"),
        "moe_layers": [layer for layer, is_mixed in enumerate(mixed) if is_mixed],
        "attention_chunk_size": fields.integer("attention.sliding_window", _LLAMA4_CHUNK),
        "no_rope_layers": [int((layer + 1) % 4 != 0) for layer in range(config["num_hidden_layers"])],
        "use_qk_norm": n_experts != _PLAIN_HEADS_EXPERTS,
        "attn_temperature_tuning": True,
        "floor_scale": 8192,
        "attn_scale": 0.1,
        "rope_theta": fields.number("rope.freq_base", 500_000.0),
    }
