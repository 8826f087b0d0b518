"""The metadata of a GGUF file to be: that of the GGUF file it comes from, or what a folder says, in GGUF's words.

Keys: docs/gguf.md of the ggml project and ``gguf-py/gguf/constants.py`` of llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headrace.core.errors import ConfigError
from headrace.layers.rope import RopeSpec
from headrace.models.config import Fields
from headrace.models.rope_config import read_rope
from headrace.weights.checkpoint import Checkpoint
from headrace.weights.gguf import GgufCheckpoint
from headrace.weights.gguf_names import is_weight
from headrace.weights.gguf_rope import llama3_divisors

from .gguf_stored import WRITTEN
from .gguf_tokenizer import F32, STRING, U32, Field, tokenizer_fields

_OWN = ("general.architecture", "general.file_type", "general.quantization_version")
_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""Of folders. From one GGUF file to another go those of ``WRITTEN``."""


@dataclass(frozen=True, slots=True)
class GgufFields:
    arch: str
    head_dim: int
    values: dict[str, Field]
    tables: dict[str, np.ndarray]
    """Tensors that belong to the configuration: factors of rope."""


def need_gguf() -> Any:
    """The package that writes the container. Raises ``ConfigError`` if it is not there."""
    try:
        import gguf
    except ImportError:
        raise ConfigError("--to gguf needs the package gguf: pip install 'headrace[gguf]'") from None
    return gguf


def fields_of(checkpoint: Checkpoint) -> GgufFields:
    """Raises ``ConfigError`` for a folder of an architecture, or with settings, that are not written here."""
    if isinstance(checkpoint, GgufCheckpoint):
        return _copied(checkpoint)
    config = checkpoint.config()
    name = next(iter(config.get("architectures") or ("",)))
    if name not in _ARCHITECTURES:
        raise ConfigError(
            f"{checkpoint.path}: a folder of {name or 'an unnamed architecture'} is not written as GGUF; there are"
            f" {', '.join(_ARCHITECTURES)}, and GGUF files of {', '.join(WRITTEN)}"
        )
    arch = _ARCHITECTURES[name]
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    values, tables = _model(checkpoint, config, head_dim)
    return GgufFields(
        arch,
        head_dim,
        {f"{arch}.{key}": field for key, field in values.items()}
        | tokenizer_fields(checkpoint.path, config["vocab_size"]),
        tables,
    )


def check_read_back(checkpoint: Checkpoint, path: Path) -> None:
    """Raises ``ConfigError`` if the file at ``path`` says something else of the model than ``checkpoint`` does."""
    written = GgufCheckpoint(path)
    wanted, found = checkpoint.config(), written.config()
    written.close()
    other = [
        name
        for name, value in found.items()
        if name not in ("architectures", "model_type", "rope_scaling") and not _is_same(wanted.get(name), value)
    ]
    if _rope(wanted) != _rope(found):
        other.append("rope")
    if other:
        raise ConfigError(
            f"{checkpoint.path}: GGUF has no words for its {', '.join(other)}: {found.get(other[0])!r} would be read in"
            f" place of {wanted.get(other[0])!r}"
        )


def _is_same(wanted: Any, found: Any) -> bool:
    """What a configuration leaves out is for the architecture to say."""
    if wanted is None or isinstance(wanted, bool) or not isinstance(wanted, int | float):
        return wanted is None or wanted == found
    return math.isclose(wanted, found, rel_tol=1e-6)


def _rope(config: dict[str, Any]) -> RopeSpec:
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return read_rope(Fields(config, "the model"), head_dim=head_dim, max_positions=config["max_position_embeddings"])


def _copied(checkpoint: GgufCheckpoint) -> GgufFields:
    arch = checkpoint.metadata["general.architecture"]
    if arch not in WRITTEN:
        raise ConfigError(
            f"{checkpoint.path}: GGUF's architecture {arch!r} is read, not written; there are {', '.join(WRITTEN)}"
        )
    reader = need_gguf().GGUFReader(checkpoint.path)
    values = {
        name: (field.contents(), int(field.types[0]), field.types[-1] if len(field.types) > 1 else None)
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.") and name not in _OWN
    }
    tables = {one.name: np.array(one.data) for one in reader.tensors if not is_weight(one.name)}
    return GgufFields(arch, checkpoint.config()["head_dim"], values, tables)


def _model(
    checkpoint: Checkpoint, config: Mapping[str, Any], head_dim: int
) -> tuple[dict[str, Field], dict[str, np.ndarray]]:
    values: dict[str, Field] = {
        "context_length": (config["max_position_embeddings"], U32, None),
        "embedding_length": (config["hidden_size"], U32, None),
        "block_count": (config["num_hidden_layers"], U32, None),
        "feed_forward_length": (config["intermediate_size"], U32, None),
        "attention.head_count": (config["num_attention_heads"], U32, None),
        "attention.head_count_kv": (config.get("num_key_value_heads") or config["num_attention_heads"], U32, None),
        "attention.key_length": (head_dim, U32, None),
        "attention.value_length": (head_dim, U32, None),
        "attention.layer_norm_rms_epsilon": (config.get("rms_norm_eps", 1e-6), F32, None),
        "rope.dimension_count": (head_dim, U32, None),
        "vocab_size": (config["vocab_size"], U32, None),
    }
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        raise ConfigError(f"{checkpoint.path}: sliding_window is not written as GGUF")
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = rope.get("rope_theta") or config.get("rope_theta", 10_000.0)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    values["rope.freq_base"] = (theta, F32, None)
    if kind == "llama3":
        values["rope.scaling.original_context_length"] = (rope["original_max_position_embeddings"], U32, None)
        return values, {"rope_freqs.weight": llama3_divisors(theta, head_dim // 2, rope).astype(np.float32)}
    if kind in ("linear", "yarn"):
        values["rope.scaling.type"] = (kind, STRING, None)
        values["rope.scaling.factor"] = (rope["factor"], F32, None)
        if rope.get("original_max_position_embeddings"):
            values["rope.scaling.original_context_length"] = (rope["original_max_position_embeddings"], U32, None)
    elif kind != "default":
        raise ConfigError(
            f"{checkpoint.path}: rope of kind {kind!r} is not written as GGUF; there are linear, yarn, llama3"
        )
    return values, {}
