"""GGUF metadata to the fields of a Hugging Face ``config.json``.

Keys: docs/gguf.md of the ggml project and ``gguf-py/gguf/constants.py`` of llama.cpp. What a file does not say is
filled in as llama.cpp does when it loads the architecture (``src/llama-model.cpp``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

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
_PARTIAL = ("phi3", "nemotron")
"""Architectures that may rotate a part of each head."""
_WITH_EXPERTS = ("llama", "qwen3moe")


def hf_config(header: GgufHeader, read: ReadVector) -> dict[str, Any]:
    """The Hugging Face configuration of a GGUF file.

    ``read`` gives the values of a vector that belongs to the configuration (rope tables). Raises ``CheckpointError``
    for unknown architectures and for variants that the configuration cannot express.
    """
    fields = Fields(header)
    if fields.arch not in _FAMILIES:
        raise fields.error(f"architecture {fields.arch!r} is not supported; supported: {', '.join(_FAMILIES)}")
    if fields.arch not in _WITH_EXPERTS and fields.optional_integer("expert_count"):
        raise fields.error(f"architecture {fields.arch!r} with experts is not supported")
    config = _common(fields)
    config |= _FAMILIES[fields.arch](fields, config)
    scaling = rope_scaling(fields, config, read)
    if scaling is not None:
        config["rope_scaling"] = scaling
    return config


def hf_generation_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """End and begin ids as a ``generation_config.json`` has them: end of sequence, of turn and of message."""
    ids = [metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    ends = sorted({token for token in ids if isinstance(token, int)})
    config: dict[str, Any] = {"eos_token_id": ends} if ends else {}
    if isinstance(metadata.get("tokenizer.ggml.bos_token_id"), int):
        config["bos_token_id"] = metadata["tokenizer.ggml.bos_token_id"]
    return config


def _common(fields: Fields) -> dict[str, Any]:
    heads = fields.integer("attention.head_count")
    hidden = fields.integer("embedding_length")
    head_dim = fields.integer("attention.key_length", _default_head_dim(fields, hidden, heads))
    if fields.integer("attention.value_length", head_dim) != head_dim:
        raise fields.error("keys and values of different width are not supported in this architecture")
    rotated = fields.integer("rope.dimension_count", head_dim)
    if head_dim % 2 or rotated % 2 or not (rotated == head_dim or (fields.arch in _PARTIAL and rotated < head_dim)):
        raise fields.error(
            f"rope.dimension_count {rotated} differs from the head width {head_dim}, or one is odd: not supported"
        )
    vocab, width = _matrix(fields, "token_embd.weight")
    if width != hidden:
        raise fields.error(f"tensor 'token_embd.weight': expected {hidden} columns (embedding_length), found {width}")
    config: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": fields.integer("feed_forward_length"),
        "num_hidden_layers": fields.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": fields.integer("context_length"),
        "tie_word_embeddings": not fields.has_tensor("output.weight"),
        "attention_bias": fields.has_tensor("blk.0.attn_q.bias"),
    }
    if fields.arch != "nemotron":
        config["rms_norm_eps"] = fields.number("attention.layer_norm_rms_epsilon")
    if fields.arch in _PARTIAL:
        config["partial_rotary_factor"] = _share(rotated, head_dim)
    return config


def _default_head_dim(fields: Fields, hidden: int, heads: int) -> int:
    """Files without ``attention.key_length``: where whole heads are rotated, the rotation tells their width."""
    derived = max(hidden // heads, 1)
    return derived if fields.arch in _PARTIAL else fields.integer("rope.dimension_count", derived)


def _share(part: int, whole: int) -> float:
    """``part / whole``, so that ``int(whole * share)`` is ``part`` again."""
    share = part / whole
    return share if int(whole * share) == part else math.nextafter(share, 1.0)


def _matrix(fields: Fields, tensor: str) -> tuple[int, int]:
    shape = fields.shape(tensor)
    if len(shape) != 2:
        raise fields.error(f"tensor {tensor!r}: expected 2 dimensions, found shape {list(shape)}")
    return shape[0], shape[1]


def _llama(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    if fields.optional_integer("expert_count"):
        return _mixtral(fields)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "mlp_bias": fields.has_tensor("blk.0.ffn_gate.bias"),
        "rope_theta": fields.number("rope.freq_base", 10_000.0),
    }


def _mixtral(fields: Fields) -> dict[str, Any]:
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "hidden_act": "silu",
        "num_local_experts": fields.integer("expert_count"),
        "num_experts_per_tok": fields.integer("expert_used_count"),
        "sliding_window": fields.window("attention.sliding_window"),
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


def _qwen3_moe(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    """Weights of experts are divided by their sum, as llama.cpp does for every file of this architecture."""
    return {
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


def _gemma3(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    n_layers = config["num_hidden_layers"]
    default = [(layer + 1) % _GEMMA3_PERIOD != 0 for layer in range(n_layers)]
    sliding = _sliding_layers(fields, n_layers, default)
    is_27b = n_layers == _GEMMA3_27B_LAYERS
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": config["hidden_size"] // config["num_attention_heads"]
        if is_27b
        else config["head_dim"],
        "sliding_window": fields.integer("attention.sliding_window"),
        "layer_types": _layer_types(sliding),
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
        sliding = _sliding_layers(fields, n_layers, default)
    return {
        "architectures": ["Exaone4ForCausalLM"],
        "model_type": "exaone4",
        "hidden_act": "silu",
        "sliding_window": window,
        "layer_types": _layer_types(sliding),
        "rope_theta": fields.number("rope.freq_base", 10_000.0),
    }


def _sliding_layers(fields: Fields, n_layers: int, default: list[bool] | None) -> list[bool]:
    """Which layers slide, one entry a layer. Without a ``default`` the file must say so."""
    sliding = fields.flags("attention.sliding_window_pattern") or default
    if sliding is None:
        raise fields.error("attention.sliding_window is there, but attention.sliding_window_pattern is missing")
    if len(sliding) != n_layers:
        raise fields.error(f"attention.sliding_window_pattern has {len(sliding)} entries for {n_layers} layers")
    return sliding


def _layer_types(sliding: list[bool]) -> list[str]:
    return ["sliding_attention" if local else "full_attention" for local in sliding]


_FAMILIES: dict[str, Callable[[Fields, dict[str, Any]], dict[str, Any]]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3moe": _qwen3_moe,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "nemotron": _nemotron,
    "exaone4": _exaone4,
}
"""Mistral comes as ``llama``, and so does Mixtral."""
