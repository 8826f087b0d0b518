"""Which tiny models there are: every architecture, and what its configuration can switch. Data only."""

from __future__ import annotations

from typing import Any

ABSENT = object()
"""For a field that the configuration does not have."""

BASE = {
    "vocab_size": 317,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "attn_implementation": "eager",
    "experts_implementation": "eager",
}


def _rope(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **parameters}}


_LLAMA3 = _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
_YARN = _rope("yarn", factor=4.0, original_max_position_embeddings=64)
_PHI = {"head_dim": 16, "num_key_value_heads": 2, "pad_token_id": 0}
"""The reference takes head_dim from hidden_size in places."""
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.3, 1.7, 2.0, 2.5],
    "long_factor": [1.0, 2.0, 4.0, 8.0, 15.0, 30.0],
}
_LONG = {**_PHI, "rope_parameters": _LONGROPE, "original_max_position_embeddings": 8}
"""Whatever the tests run, prompt and output together, is longer than 8 tokens: the reference takes the long list."""
_SHORT = {
    **_PHI,
    "rope_parameters": {**_LONGROPE, "attention_factor": 1.2},
    "original_max_position_embeddings": 256,
}
_SSSF = ["sliding_attention"] * 3 + ["full_attention"]
_EXAONE = {"num_hidden_layers": 5, "sliding_window": 8, "layer_types": [*_SSSF, "sliding_attention"], **_LLAMA3}
_QWEN_MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "mlp_only_layers": [1]}
_GPT_OSS = {
    "num_hidden_layers": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 8,
    "swiglu_limit": 0.8,
    **_rope("yarn", factor=32.0, beta_fast=32.0, beta_slow=1.0, truncate=False, original_max_position_embeddings=32),
}
"""The limit is so low that many gates and ups are beyond it."""
_LLAMA4 = {
    "num_hidden_layers": 4,
    "intermediate_size_mlp": 80,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "interleave_moe_layer_step": 2,
    "attention_chunk_size": 8,
    "no_rope_layers": [1, 1, 1, 0],
    "floor_scale": 4,
    **_rope("llama3", factor=16.0, low_freq_factor=1.0, high_freq_factor=1.0, original_max_position_embeddings=32),
}
_GEMMA = {
    "num_hidden_layers": 4,
    "query_pre_attn_scalar": 24,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "tie_word_embeddings": True,
}

_QWEN_NEXT = {
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 40,
}
_MAMBA = {
    "num_hidden_layers": ABSENT,
    "layers_block_type": ["linear_attention", "mlp", "full_attention", "linear_attention", "mlp"],
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "ssm_state_size": 16,
    "n_groups": 2,
    "conv_kernel": 4,
    "chunk_size": 16,
    # The reference takes this for a lower bound of the time step in prompts, and not after them.
    "time_step_min": 1e-12,
}
_DEEPSEEK = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "head_dim": ABSENT,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "routed_scaling_factor": 2.5,
    **_rope("yarn", factor=40.0, original_max_position_embeddings=32, mscale=1.0, mscale_all_dim=1.0),
}

_MLLAMA = {
    "num_hidden_layers": 4,
    "cross_attention_layers": [1, 3],
    "head_dim": ABSENT,
    "rms_norm_eps": 1e-5,
    "vision": {
        "hidden_size": 32,
        "attention_heads": 4,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_global_layers": 2,
        "image_size": 28,
        "patch_size": 14,
        "max_num_tiles": 4,
        "intermediate_layers_indices": [0, 1],
        "vision_output_dim": 96,
    },
    **_LLAMA3,
}
"""A tile has 5 patches: padded to 8, as those of the released models are padded too."""


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-linear": ("Llama", _rope("linear", factor=4.0)),
    "llama-dynamic": ("Llama", _rope("dynamic", factor=2.0)),
    "llama-llama3": ("Llama", _LLAMA3),
    "llama-yarn": ("Llama", _YARN),
    "llama-yarn-mscale": (
        "Llama",
        _rope("yarn", factor=8.0, original_max_position_embeddings=32, mscale=0.7, mscale_all_dim=1.0, truncate=False),
    ),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-odd-mha": (
        "Llama",
        {
            "hidden_size": 60,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "head_dim": 20,
            "intermediate_size": 77,
        },
    ),
    "llama-odd-mqa": (
        "Llama",
        {"hidden_size": 60, "num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 12, "vocab_size": 331},
    ),
    "llama-wide-heads": ("Llama", {"head_dim": 40, "num_hidden_layers": 1, **_LLAMA3}),
    "llama-derived-head-dim": ("Llama", {"head_dim": None, "num_key_value_heads": None}),
    "qwen3": ("Qwen3", {}),
    "qwen3-tied-biases": ("Qwen3", {"tie_word_embeddings": True, "attention_bias": True}),
    "qwen3-sliding": ("Qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen3-yarn-odd": (
        "Qwen3",
        {**_YARN, "head_dim": 20, "num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 60},
    ),
    "gemma3": ("Gemma3", _GEMMA),
    "gemma3-cap": ("Gemma3", {**_GEMMA, "final_logit_softcapping": 30.0}),
    "gemma3-untied-window-40": ("Gemma3", {**_GEMMA, "tie_word_embeddings": False, "sliding_window": 40}),
    "gemma3-odd": (
        "Gemma3",
        {**_GEMMA, "head_dim": 12, "hidden_size": 60, "num_key_value_heads": 1, "attention_bias": True},
    ),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-sliding": ("Mistral", {"sliding_window": 8}),
    "mistral-window-40-odd-mqa": (
        "Mistral",
        {"sliding_window": 40, "hidden_size": 60, "num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 20},
    ),
    "mistral-derived-head-dim": ("Mistral", {"sliding_window": None, "head_dim": ABSENT, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {"head_dim": ABSENT}),
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True, "rms_norm_eps": 1e-3}),
    "qwen2-sliding": ("Qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen2-yarn-odd": (
        "Qwen2",
        {**_YARN, "head_dim": 20, "num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 60},
    ),
    "phi3": ("Phi3", {"head_dim": ABSENT, "sliding_window": 512}),
    "phi3-sliding-mha": ("Phi3", {**_PHI, "sliding_window": 8, "num_key_value_heads": 4, "intermediate_size": 77}),
    "phi3-partial-tied": (
        "Phi3",
        {**_PHI, **_rope("default", partial_rotary_factor=0.75), "tie_word_embeddings": True},
    ),
    "phi3-longrope-short": ("Phi3", _SHORT),
    "phi3-longrope-long": ("Phi3", {**_LONG, "tie_word_embeddings": True, "sliding_window": 40}),
    "phi3-longrope-long-factor-odd": (
        "Phi3",
        {
            **_LONG,
            "rope_parameters": {**_LONGROPE, "factor": 3.0, "short_factor": [1.0] * 3, "long_factor": [1.0, 3.0, 9.0]},
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "hidden_size": 40,
            "head_dim": 8,
        },
    ),
    "nemotron": ("Nemotron", {}),
    "nemotron-biases-tied": (
        "Nemotron",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "norm_eps": 1e-2},
    ),
    "nemotron-odd": (
        "Nemotron",
        {
            **_rope("default", partial_rotary_factor=0.25),
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 24,
            "hidden_size": 60,
            "intermediate_size": 77,
        },
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "mixtral-odd-window-40": (
        "Mixtral",
        {
            "num_local_experts": 3,
            "num_experts_per_tok": 3,
            "sliding_window": 40,
            "hidden_size": 60,
            "intermediate_size": 77,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3-moe": ("Qwen3Moe", _QWEN_MOE),
    "qwen3-moe-normalised": ("Qwen3Moe", {**_QWEN_MOE, "norm_topk_prob": True, "num_experts_per_tok": 3, **_YARN}),
    "qwen3-moe-sparse-step-sliding": (
        "Qwen3Moe",
        {
            **_QWEN_MOE,
            "mlp_only_layers": [],
            "decoder_sparse_step": 2,
            "use_sliding_window": True,
            "sliding_window": 8,
            "attention_bias": True,
            "moe_intermediate_size": 33,
        },
    ),
    "gpt-oss": ("GptOss", {**_GPT_OSS, "num_experts_per_tok": 4}),
    "gpt-oss-window-40-odd": (
        "GptOss",
        {
            **_GPT_OSS,
            "sliding_window": 40,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
            "hidden_size": 60,
            "intermediate_size": 77,
            "head_dim": 20,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
        },
    ),
    "llama4": ("Llama4", _LLAMA4),
    "llama4-two-experts-plain-heads": (
        "Llama4",
        {**_LLAMA4, "num_experts_per_tok": 2, "use_qk_norm": False, "attn_temperature_tuning": False},
    ),
    "llama4-chunk-40-odd": (
        "Llama4",
        {
            **_LLAMA4,
            "attention_chunk_size": 40,
            "moe_layers": [0, 3],
            "hidden_size": 60,
            "intermediate_size": 77,
            "head_dim": 20,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "attention_bias": True,
        },
    ),
    "exaone4": ("Exaone4", _EXAONE),
    "exaone4-no-window": (
        "Exaone4",
        {**_EXAONE, "sliding_window": None, "layer_types": ["full_attention"] * 5, "tie_word_embeddings": True},
    ),
    "exaone4-window-40-odd": (
        "Exaone4",
        {**_EXAONE, "sliding_window": 40, "head_dim": 20, "num_attention_heads": 3, "num_key_value_heads": 1},
    ),
    "decilm": ("DeciLM", {}),
    "mllama": ("Mllama", _MLLAMA),
    "mllama-odd-mqa": (
        "Mllama",
        {
            **_MLLAMA,
            "hidden_size": 60,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "cross_attention_layers": [0],
        },
    ),
    "qwen3-next": ("Qwen3Next", _QWEN_NEXT),
    "qwen3-next-odd-biases-tied": (
        "Qwen3Next",
        {
            **_QWEN_NEXT,
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "linear_attention", "linear_attention"],
            "linear_num_key_heads": 3,
            "linear_num_value_heads": 3,
            "linear_key_head_dim": 12,
            "linear_value_head_dim": 20,
            "linear_conv_kernel_dim": 2,
            "head_dim": 40,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "attention_bias": True,
            "mlp_only_layers": [1],
            "norm_topk_prob": False,
            "rms_norm_eps": 1e-3,
            "tie_word_embeddings": True,
        },
    ),
    "nemotron-h": ("NemotronH", _MAMBA),
    "nemotron-h-odd-biases": (
        "NemotronH",
        {
            **_MAMBA,
            "layers_block_type": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
            "mamba_num_heads": 3,
            "n_groups": 3,
            "mamba_head_dim": 20,
            "ssm_state_size": 12,
            "conv_kernel": 3,
            "use_bias": True,
            "mlp_bias": True,
            "use_conv_bias": False,
            "layer_norm_epsilon": 1e-2,
        },
    ),
    "nemotron-h-experts": (
        "NemotronH",
        {
            **_MAMBA,
            "layers_block_type": ["linear_attention", "moe", "full_attention", "moe", "mlp"],
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 2.5,
            "moe_intermediate_size": 48,
            "moe_shared_expert_intermediate_size": 40,
        },
    ),
    "nemotron-h-latent-experts-odd": (
        "NemotronH",
        {
            **_MAMBA,
            "layers_block_type": ["moe", "linear_attention", "full_attention", "moe"],
            "n_routed_experts": 5,
            "num_experts_per_tok": 2,
            "norm_topk_prob": False,
            "moe_intermediate_size": 33,
            "moe_shared_expert_intermediate_size": 27,
            "moe_latent_size": 20,
            "mlp_bias": True,
        },
    ),
    "deepseek-v3": ("DeepseekV3", _DEEPSEEK),
    "deepseek-v3-plain": (
        "DeepseekV3",
        {**_DEEPSEEK, **_rope("default"), "q_lora_rank": None, "n_group": 1, "topk_group": 1, "norm_topk_prob": False},
    ),
    "deepseek-v3-odd": (
        "DeepseekV3",
        {
            **_DEEPSEEK,
            **_rope("yarn", factor=8.0, original_max_position_embeddings=32, mscale=0.7, mscale_all_dim=1.2),
            "hidden_size": 60,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "kv_lora_rank": 26,
            "qk_nope_head_dim": 10,
            "qk_rope_head_dim": 6,
            "v_head_dim": 14,
            "attention_bias": True,
            "rope_interleave": False,
            "first_k_dense_replace": 2,
            "n_shared_experts": 2,
            "moe_intermediate_size": 27,
        },
    ),
}
"""Name -> (class prefix, what differs from the common base)."""

_LABELS = {"id2label": {0: "bad", 1: "so so", 2: "good"}, "label2id": {"bad": 0, "so so": 1, "good": 2}}
_LABELLED = {**_LABELS, "pad_token_id": 0}
_BERT = {
    "vocab_size": 311,
    "hidden_size": 60,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "intermediate_size": 77,
    "max_position_embeddings": 200,
    "num_labels": 3,
    "attn_implementation": "eager",
}

LABELLED: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", None, _BERT),
    "qwen2-reward": ("Qwen2ForRewardModel", "qwen2", {}),
    "qwen2-process-reward": ("Qwen2ForProcessRewardModel", "qwen2", {}),
    "llama-labels": ("LlamaForSequenceClassification", "llama-tied", _LABELLED),
    "qwen2-labels": ("Qwen2ForSequenceClassification", "qwen2", _LABELLED),
    "qwen3-labels": ("Qwen3ForSequenceClassification", "qwen3-sliding", _LABELLED),
    "mistral-labels": ("MistralForSequenceClassification", "mistral-sliding", _LABELLED),
    "gemma3-labels": ("Gemma3TextForSequenceClassification", "gemma3", _LABELLED),
    "phi3-labels": ("Phi3ForSequenceClassification", "phi3-partial-tied", _LABELLED),
    "nemotron-labels": ("NemotronForSequenceClassification", "nemotron", _LABELLED),
    "exaone4-labels": ("Exaone4ForSequenceClassification", "exaone4", _LABELLED),
}
"""Name -> (architecture, variant that is its trunk, what its configuration has beside it): models that only encode."""
