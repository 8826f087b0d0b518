"""A transformers model as a GGUF file: what ``convert_hf_to_gguf.py`` of llama.cpp does, for tiny models.

Tensor names come from the tables of the ``gguf`` package.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, get_tensor_name_map
from gguf.quants import quantize
from transformers import PreTrainedConfig, PreTrainedModel

from weights.gguf_files import add_field, blocks_like


def convert(
    model: PreTrainedModel,
    arch: MODEL_ARCH,
    path: Path,
    changes: dict[str, Any] | None = None,
    experts: GGMLQuantizationType | None = None,
    matrices: GGMLQuantizationType | None = None,
) -> Path:
    """Write ``model`` in float32, ``experts`` and other ``matrices`` in blocks of that type; forms that the package
    only reads are random. ``changes`` replaces metadata (None removes)."""
    config, name = model.config, MODEL_ARCH_NAMES[arch]
    writer = GGUFWriter(path, name)
    for key, value in {**_fields(config, name), **(changes or {})}.items():
        if value is not None:
            add_field(writer, f"{name}.{key}", value)
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    for hf_name, weight in _hub_tensors(model):
        if hf_name != "lm_head.weight" or not config.tie_word_embeddings:
            gguf_name = names.get_name(hf_name, (".weight", ".bias"))
            stored = _stored(name, hf_name, weight.numpy(), config)
            if experts is not None and "_exps" in gguf_name:
                writer.add_tensor(gguf_name, quantize(stored, experts), raw_dtype=experts)
            elif matrices is not None and stored.ndim == 2:
                writer.add_tensor(
                    gguf_name, blocks_like(stored, matrices, zlib.crc32(gguf_name.encode())), raw_dtype=matrices
                )
            else:
                writer.add_tensor(gguf_name, stored)
    for gguf_name, table in _rope_tables(config):
        writer.add_tensor(gguf_name, table)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _hub_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """Gate and up of experts apart; the converter stacks the experts of the hub, and here they are in one anyway."""
    for name, weight in model.state_dict().items():
        if name.endswith("experts.gate_up_proj"):
            for part, half in zip(("gate_proj", "up_proj"), weight.chunk(2, 1), strict=True):
                yield name.replace("gate_up_proj", f"{part}.weight"), half
        else:
            yield f"{name}.weight" if name.endswith("experts.down_proj") else name, weight


def _head_dim(config: PreTrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _fields(config: PreTrainedConfig, name: str) -> dict[str, Any]:
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    fields = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": float(rope["rope_theta"]),
        "attention.sliding_window": getattr(config, "sliding_window", None),
    }
    if getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None):
        fields |= {
            "expert_count": getattr(config, "num_experts", None) or config.num_local_experts,
            "expert_used_count": config.num_experts_per_tok,
            "expert_feed_forward_length": getattr(config, "moe_intermediate_size", None),
        }
    if getattr(config, "head_dim", None):
        fields |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    if rope["rope_type"] in ("linear", "yarn"):
        fields |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": rope["factor"]}
    if rope["rope_type"] in ("llama3", "yarn"):
        fields["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    if name in ("gemma3", "exaone4") and config.sliding_window is not None:
        fields["attention.sliding_window_pattern"] = [kind == "sliding_attention" for kind in config.layer_types]
    return fields | _special_fields(config, name, rope)


def _special_fields(config: PreTrainedConfig, name: str, rope: dict[str, Any]) -> dict[str, Any]:
    rotated = int(_head_dim(config) * rope.get("partial_rotary_factor", 1.0))
    if name == "nemotron":
        return {
            "attention.layer_norm_rms_epsilon": None,
            "attention.layer_norm_epsilon": config.norm_eps,
            "rope.dimension_count": rotated,
            "rope.scaling.type": "none",
        }
    if name != "phi3":
        return {}
    original = config.original_max_position_embeddings
    ratio = config.max_position_embeddings / original
    factor = math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 else 1.0
    return {
        # Always written, head width never.
        "attention.key_length": None,
        "attention.value_length": None,
        "attention.sliding_window": config.sliding_window or 0,
        "rope.dimension_count": rotated,
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": rope.get("attention_factor", factor) if rope["rope_type"] == "longrope" else None,
    }


def _stored(arch: str, name: str, weight: np.ndarray, config: PreTrainedConfig) -> np.ndarray:
    if arch == "llama" and ("q_proj" in name or "k_proj" in name):
        half = _head_dim(config) // 2
        return weight.reshape(-1, 2, half, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    if arch in ("gemma3", "nemotron") and name.endswith("norm.weight"):
        return weight + 1
    return weight


def _rope_tables(config: PreTrainedConfig) -> Iterator[tuple[str, np.ndarray]]:
    rope = config.rope_parameters
    if rope.get("rope_type") == "longrope":
        yield "rope_factors_long.weight", np.array(rope["long_factor"], np.float32)
        yield "rope_factors_short.weight", np.array(rope["short_factor"], np.float32)
    if rope.get("rope_type") == "llama3":
        yield "rope_freqs.weight", llama3_table(rope, _head_dim(config))


def llama3_table(rope: dict[str, Any], head_dim: int) -> np.ndarray:
    """What the inverse frequencies are divided by."""
    waves = [2 * math.pi * rope["rope_theta"] ** (2 * i / head_dim) for i in range(head_dim // 2)]
    return np.array([_llama3_divisor(wave, rope) for wave in waves], np.float32)


def _llama3_divisor(wave: float, rope: dict[str, Any]) -> float:
    original, low, high = (
        rope[f"{key}"] for key in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    )
    if wave < original / high:
        return 1.0
    if wave > original / low:
        return rope["factor"]
    smooth = (original / wave - low) / (high - low)
    return 1 / ((1 - smooth) / rope["factor"] + smooth)
