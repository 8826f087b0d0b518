"""The least that a configuration of each architecture must say, as small as can be."""

from __future__ import annotations

from typing import Any

BASE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}

_OWN: dict[str, dict[str, Any]] = {
    "DeciLMForCausalLM": {
        "intermediate_size": None,
        "block_configs": [{"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 1.0}}] * 2,
    },
    "Qwen3NextForCausalLM": {
        "full_attention_interval": 2,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 6,
        "linear_value_head_dim": 6,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 10,
        "shared_expert_intermediate_size": 10,
    },
    "NemotronHForCausalLM": {
        "num_hidden_layers": None,
        "hybrid_override_pattern": "M*",
        "mamba_num_heads": 4,
        "mamba_head_dim": 6,
        "ssm_state_size": 8,
        "n_groups": 2,
    },
    "DeepseekV3ForCausalLM": {
        "num_key_value_heads": 4,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 6,
        "qk_rope_head_dim": 4,
        "v_head_dim": 10,
        "first_k_dense_replace": 1,
        "n_routed_experts": 16,
        "moe_intermediate_size": 12,
    },
    "MllamaForConditionalGeneration": {"cross_attention_layers": [1]},
}
"""What an architecture has instead, or beside it."""


_VISION = {
    "MllamaForConditionalGeneration": {
        "hidden_size": 8,
        "attention_heads": 2,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "image_size": 28,
        "intermediate_layers_indices": [1],
        "vision_output_dim": 16,
    },
}
"""``vision_config`` of those that have one; what else they say is in ``text_config``."""


def least(architecture: str, **changes: Any) -> dict[str, Any]:
    """``changes`` to "gone" take a field out."""
    fields = {**BASE, **_OWN.get(architecture, {}), **changes}
    config = {name: value for name, value in fields.items() if value != "gone"}
    if architecture in _VISION:
        config = {"text_config": config, "vision_config": _VISION[architecture]}
    return {"architectures": [architecture], **config}


def required(architecture: str) -> list[str]:
    """Fields without a default."""
    wanted = least(architecture)
    wanted = wanted.get("text_config", wanted)
    optional = {"architectures", "num_key_value_heads", "head_dim", "mamba_head_dim", "ssm_state_size", "n_groups"}
    optional |= set(_OWN["Qwen3NextForCausalLM"])
    optional |= {"cross_attention_layers"}
    optional |= {"n_routed_experts", "moe_intermediate_size", "first_k_dense_replace"}
    return [name for name, value in wanted.items() if value is not None and name not in optional]
