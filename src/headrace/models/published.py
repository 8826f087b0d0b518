"""Configurations of published models, by name: what is needed to build them without their files. Data only."""

from __future__ import annotations

from typing import Any

from headrace.core.errors import ModelError, did_you_mean


def _rope(kind: str, factor: float, original: int, **more: Any) -> dict[str, Any]:
    return {"rope_type": kind, "factor": factor, "original_max_position_embeddings": original, **more}


def _llama3(factor: float, *, high: float = 4.0) -> dict[str, Any]:
    return _rope("llama3", factor, 8192, low_freq_factor=1.0, high_freq_factor=high)


def _searched(text: str) -> list[dict[str, Any]]:
    """``block_configs`` of DeciLM out of ``count*heads_in_group/ffn_mult``; ``-``: there is nothing."""
    blocks: list[dict[str, Any]] = []
    for run in text.split():
        count, _, choice = run.rpartition("*")
        heads, mult = choice.split("/")
        attention = {"no_op": True} if heads == "-" else {"n_heads_in_group": int(heads)}
        ffn = {"no_op": True} if mult == "-" else {"ffn_mult": float(mult)}
        blocks += [{"attention": attention, "ffn": ffn}] * int(count or 1)
    return blocks


_GPT_OSS = {
    "architectures": ["GptOssForCausalLM"],
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "num_experts_per_tok": 4,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "attention_bias": True,
    "max_position_embeddings": 131072,
    "rope_theta": 150000.0,
    "rope_scaling": _rope("yarn", 32.0, 4096, beta_fast=32.0, beta_slow=1.0, truncate=False),
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
_NEMOTRON_NAS = {
    "architectures": ["DeciLMForCausalLM"],
    "model_type": "nemotron-nas",
    "vocab_size": 128256,
    "num_key_value_heads": None,
    "intermediate_size": None,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
_SUPER_BLOCKS = (
    "8/2.625 5*8/5.25 2*-/2.625 3*8/5.25 -/3.28125 30*8/5.25 -/1.3125 2*-/2.625 -/1.3125 -/5.25 -/1.3125 -/2.625"
    " 3*-/1.3125 8/5.25 -/1.3125 2*-/1.0 -/1.3125 3*-/1.0 2*-/1.3125 2*-/0.5 2*-/1.0 2*-/0.5 -/1.0 2*-/0.5 9*8/5.25"
)
_ULTRA_BLOCKS = (
    "16/0.4875 16/0.975 6*16/1.4625 16/1.95 4*-/- 3*16/1.95 2*16/4.875 6*-/- 3*16/4.875 5*-/- 3*16/4.875 16/2.4375"
    " 3*-/- 3*16/1.95 -/1.95 16/4.875 -/4.875 5*-/- 4*16/4.875 5*-/- 4*16/4.875 5*-/- 4*16/4.875 5*-/- 4*16/4.875 5*-/-"
    " 16/4.875 3*16/3.4125 2*-/- 16/2.925 3*16/2.4375 2*-/2.4375 16/2.4375 -/- 7*-/2.4375 16/2.4375 5*-/- 16/2.925"
    " 16/4.875 -/4.875 16/4.875 8*-/- -/36.5625 8*-/- -/39.0 8*-/- -/31.40625 5*-/- -/27.5625 -/1.95 16/1.95 16/2.4375"
    " -/- 2*16/2.4375 16/3.4125 4*16/4.875 16/2.4375"
)

PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama-3.3-70B": {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128256,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rope_scaling": _llama3(8.0),
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    },
    "Llama-3.2-11B-Vision": {
        "architectures": ["MllamaForConditionalGeneration"],
        "image_token_index": 128256,
        "text_config": {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 40,
            "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "rope_theta": 500000.0,
            "rope_scaling": _llama3(8.0),
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
        },
        "vision_config": {
            "hidden_size": 1280,
            "attention_heads": 16,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_global_layers": 8,
            "image_size": 560,
            "patch_size": 14,
            "max_num_tiles": 4,
            "intermediate_layers_indices": [3, 7, 15, 23, 30],
            "vision_output_dim": 7680,
        },
        "dtype": "bfloat16",
    },
    "Mixtral-8x7B": {
        "architectures": ["MixtralForCausalLM"],
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    },
    "Qwen3-30B-A3B": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "max_position_embeddings": 40960,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    },
    "Qwen3-Next-80B-A3B": {
        "architectures": ["Qwen3NextForCausalLM"],
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 5120,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "num_hidden_layers": 48,
        "full_attention_interval": 4,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "partial_rotary_factor": 0.25,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "max_position_embeddings": 262144,
        "rope_theta": 10000000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    },
    "gpt-oss-20b": {**_GPT_OSS, "num_hidden_layers": 24, "num_local_experts": 32},
    "gpt-oss-120b": {**_GPT_OSS, "num_hidden_layers": 36, "num_local_experts": 128},
    "Llama-4-Scout-17B-16E": {
        "architectures": ["Llama4ForCausalLM"],
        "vocab_size": 202048,
        "hidden_size": 5120,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "num_hidden_layers": 48,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "num_local_experts": 16,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 1,
        "no_rope_layers": [1, 1, 1, 0] * 12,
        "attention_chunk_size": 8192,
        "use_qk_norm": True,
        "attn_temperature_tuning": True,
        "floor_scale": 8192.0,
        "attn_scale": 0.1,
        "max_position_embeddings": 10485760,
        "rope_theta": 500000.0,
        "rope_scaling": _llama3(16.0, high=1.0),
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    },
    "Llama-3_3-Nemotron-Super-49B": {
        **_NEMOTRON_NAS,
        "hidden_size": 8192,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "rope_scaling": _llama3(8.0),
        "block_configs": _searched(_SUPER_BLOCKS),
    },
    "Llama-3_1-Nemotron-Ultra-253B": {
        **_NEMOTRON_NAS,
        "hidden_size": 16384,
        "num_hidden_layers": 162,
        "num_attention_heads": 128,
        "rope_scaling": _llama3(16.0),
        "block_configs": _searched(_ULTRA_BLOCKS),
    },
    "Nemotron-H-8B": {
        "architectures": ["NemotronHForCausalLM"],
        "vocab_size": 131072,
        "hidden_size": 4096,
        "intermediate_size": 21504,
        "num_hidden_layers": 52,
        "hybrid_override_pattern": "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "mamba_num_heads": 128,
        "mamba_head_dim": 64,
        "ssm_state_size": 128,
        "n_groups": 8,
        "conv_kernel": 4,
        "use_conv_bias": True,
        "max_position_embeddings": 8192,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    },
    "Nemotron-3-Nano-30B-A3B": {
        "architectures": ["NemotronHForCausalLM"],
        "vocab_size": 131072,
        "hidden_size": 2688,
        "intermediate_size": 1856,
        "num_hidden_layers": 52,
        "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "mamba_num_heads": 64,
        "mamba_head_dim": 64,
        "ssm_state_size": 128,
        "n_groups": 8,
        "conv_kernel": 4,
        "use_conv_bias": True,
        "n_routed_experts": 128,
        "num_experts_per_tok": 6,
        "moe_intermediate_size": 1856,
        "moe_shared_expert_intermediate_size": 3712,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "max_position_embeddings": 262144,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    },
    "DeepSeek-V3": {
        "architectures": ["DeepseekV3ForCausalLM"],
        "vocab_size": 129280,
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "moe_intermediate_size": 2048,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "n_group": 8,
        "topk_group": 4,
        "routed_scaling_factor": 2.5,
        "norm_topk_prob": True,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "first_k_dense_replace": 3,
        "moe_layer_freq": 1,
        "max_position_embeddings": 163840,
        "rope_theta": 10000.0,
        "rope_scaling": _rope("yarn", 40.0, 4096, beta_fast=32, beta_slow=1, mscale=1.0, mscale_all_dim=1.0),
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    },
}
"""Name -> the fields of its ``config.json`` that say what it is made of; ``dtype`` is that of activations."""


def published(name: str) -> dict[str, Any]:
    """The configuration of a name, in upper or lower case. Raises ModelError."""
    found = {known.lower(): config for known, config in PUBLISHED.items()}
    if name.lower() not in found:
        near = did_you_mean(name.lower(), found)
        raise ModelError(f"no published model {name!r} is known here.{near} There are {', '.join(PUBLISHED)}.")
    return found[name.lower()]
