"""GGUF metadata to the fields of a Hugging Face ``config.json``.

Keys: docs/gguf.md of the ggml project and ``gguf-py/gguf/constants.py`` of llama.cpp. What a file does not say is
filled in as llama.cpp does when it loads the architecture (``src/llama-model.cpp``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .gguf_config_experts import deepseek2, gpt_oss, llama4, qwen3_moe
from .gguf_config_parts import common, further_layers, layer_types, sliding_layers
from .gguf_config_states import nemotron_h, qwen3_next
from .gguf_fields import Fields
from .gguf_reader import GgufHeader
from .gguf_rope import ReadVector, rope_scaling

_GEMMA3_27B_LAYERS = 62
"""The one Gemma 3 size whose attention scale is not head_dim^-0.5."""
_GEMMA3_PERIOD = 6
"""Every sixth layer is a full one."""
_GEMMA3_LOCAL_THETA = 10_000.0
_EXAONE4_32B_LAYERS, _EXAONE4_WINDOW, _EXAONE4_PERIOD = 64, 4096, 4
"""The one EXAONE 4 size with windows; its first files do not say so."""


def hf_config(header: GgufHeader, read: ReadVector) -> dict[str, Any]:
    """The Hugging Face configuration of a GGUF file.

    ``read`` gives the values of a vector that belongs to the configuration (rope tables). Raises ``CheckpointError``
    for unknown architectures and for variants that the configuration cannot express.
    """
    fields = Fields(header)
    known = [*_DENSE, *_FAMILIES]
    if fields.arch not in known:
        raise fields.error(f"architecture {fields.arch!r} is not supported; supported: {', '.join(known)}")
    if fields.arch in _DENSE:
        if fields.optional_integer("expert_count"):
            raise fields.error(f"architecture {fields.arch!r} with experts is not supported")
        config = common(fields, partial=fields.arch in _PARTIAL)
        config |= _DENSE[fields.arch](fields, config)
    else:
        config = _FAMILIES[fields.arch](fields)
    scaling = rope_scaling(fields, config, read) if "rope_theta" in config else None
    if scaling is not None:
        config["rope_scaling"] = scaling
    return config


def is_left_out(header: GgufHeader) -> Callable[[str], bool]:
    """Whether a tensor belongs to the layers that predict further tokens, behind all others: not read here."""
    fields = Fields(header)
    n_further = further_layers(fields)
    n_layers = fields.integer("block_count")
    ends = tuple(f"blk.{layer}." for layer in range(n_layers - n_further, n_layers))
    return lambda name: name.startswith(ends) if ends else False


def hf_generation_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """End and begin ids as a ``generation_config.json`` has them: end of sequence, of turn and of message."""
    ids = [metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    ends = sorted({token for token in ids if isinstance(token, int)})
    config: dict[str, Any] = {"eos_token_id": ends} if ends else {}
    if isinstance(metadata.get("tokenizer.ggml.bos_token_id"), int):
        config["bos_token_id"] = metadata["tokenizer.ggml.bos_token_id"]
    return config


def _llama(fields: Fields) -> dict[str, Any]:
    config = common(fields)
    if fields.optional_integer("expert_count"):
        return config | {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "hidden_act": "silu",
            "num_local_experts": fields.integer("expert_count"),
            "num_experts_per_tok": fields.integer("expert_used_count"),
            "sliding_window": fields.window("attention.sliding_window"),
            "rope_theta": fields.number("rope.freq_base", 10_000.0),
        }
    return config | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "mlp_bias": fields.has_tensor("blk.0.ffn_gate.bias"),
        "rope_theta": fields.number("rope.freq_base", 10_000.0),
    }


def _qwen2(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "use_sliding_window": False,
        "rope_theta": fields.number("rope.freq_base", 10_000.0),
    }


def _qwen3(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_act": "silu",
        "use_sliding_window": False,
        "rope_theta": fields.number("rope.freq_base"),
    }


def _gemma3(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    n_layers = config["num_hidden_layers"]
    default = [(layer + 1) % _GEMMA3_PERIOD != 0 for layer in range(n_layers)]
    sliding = sliding_layers(fields, n_layers, default)
    is_27b = n_layers == _GEMMA3_27B_LAYERS
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": config["hidden_size"] // config["num_attention_heads"]
        if is_27b
        else config["head_dim"],
        "sliding_window": fields.integer("attention.sliding_window"),
        "layer_types": layer_types(sliding),
        "rope_theta": fields.number("rope.freq_base", 1_000_000.0),
        "rope_local_base_freq": fields.number("rope.freq_base_swa", _GEMMA3_LOCAL_THETA),
        "final_logit_softcapping": fields.optional_number("final_logit_softcapping"),
        "attn_logit_softcapping": fields.optional_number("attn_logit_softcapping"),
    }


def _phi3(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    """A window of 0 is written for models without one."""
    original = fields.integer("rope.scaling.original_context_length", config["max_position_embeddings"])
    return {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "hidden_act": "silu",
        "sliding_window": fields.window("attention.sliding_window"),
        "original_max_position_embeddings": original,
        "rope_theta": fields.number("rope.freq_base", 10_000.0),
    }


def _nemotron(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["NemotronForCausalLM"],
        "model_type": "nemotron",
        "hidden_act": "relu2",
        "norm_eps": fields.number("attention.layer_norm_epsilon"),
        "mlp_bias": fields.has_tensor("blk.0.ffn_up.bias"),
        "rope_theta": fields.number("rope.freq_base", 10_000.0),
    }


def _exaone4(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    n_layers = config["num_hidden_layers"]
    is_32b = n_layers == _EXAONE4_32B_LAYERS
    window = fields.window("attention.sliding_window", _EXAONE4_WINDOW if is_32b else None)
    sliding = [False] * n_layers
    if window is not None:
        default = [(layer + 1) % _EXAONE4_PERIOD != 0 for layer in range(n_layers)] if is_32b else None
        sliding = sliding_layers(fields, n_layers, default)
    return {
        "architectures": ["Exaone4ForCausalLM"],
        "model_type": "exaone4",
        "hidden_act": "silu",
        "sliding_window": window,
        "layer_types": layer_types(sliding),
        "rope_theta": fields.number("rope.freq_base", 10_000.0),
    }


_DENSE: dict[str, Callable[[Fields, dict[str, Any]], dict[str, Any]]] = {
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "nemotron": _nemotron,
    "exaone4": _exaone4,
}
"""What these add to ``common``."""
_PARTIAL = ("phi3", "nemotron")
"""Those that may rotate a part of each head."""

_FAMILIES: dict[str, Callable[[Fields], dict[str, Any]]] = {
    "llama": _llama,
    "qwen3moe": qwen3_moe,
    "deepseek2": deepseek2,
    "gpt-oss": gpt_oss,
    "llama4": llama4,
    "qwen3next": qwen3_next,
    "nemotron_h": nemotron_h,
    "nemotron_h_moe": nemotron_h,
}
"""Mistral comes as ``llama``, and so does Mixtral."""
