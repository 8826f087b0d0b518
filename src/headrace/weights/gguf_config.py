"""GGUF metadata to the fields of a Hugging Face ``config.json``.

Keys: docs/gguf.md of the ggml project and ``gguf-py/gguf/constants.py`` of llama.cpp. What a file does not say is
filled in as llama.cpp does when it loads the architecture (``src/llama-model.cpp``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from headrace.core.errors import CheckpointError

from .gguf_names import ARCHITECTURES
from .gguf_reader import GgufHeader

_GEMMA3_27B_LAYERS = 62
"""The one Gemma 3 size whose attention scale is not head_dim^-0.5."""
_GEMMA3_PERIOD = 6
"""Every sixth layer is a full one."""
_GEMMA3_LOCAL_THETA = 10_000.0


class Fields:
    """Typed access to the metadata of one architecture; a missing or mistyped key raises and is named."""

    def __init__(self, header: GgufHeader) -> None:
        self._header = header
        self.arch: str = self._checked("general.architecture", self._header.metadata.get("general.architecture"), str)

    def error(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self._header.path}: {message}")

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer (an array of equal ones is taken as well: some writers repeat it per layer)."""
        value = self._get(key)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()
        value = default if value is None else value
        if self._checked(key, value, int) < 1:
            raise self.error(f"metadata {self._name(key)!r} is {value}, expected a positive number")
        return value

    def optional_integer(self, key: str) -> int | None:
        return None if self._get(key) is None else self.integer(key)

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number; float32 values come as the shortest decimal that means the same float32."""
        value = self._get(key)
        value = default if value is None else value
        number = float(str(np.float32(self._checked(key, value, (int, float)))))
        if not 0 < number < float("inf"):
            raise self.error(f"metadata {self._name(key)!r} is {value}, expected a positive finite number")
        return number

    def optional_number(self, key: str) -> float | None:
        return None if self._get(key) is None else self.number(key)

    def text(self, key: str, default: str) -> str:
        value = self._get(key)
        return self._checked(key, default if value is None else value, str)

    def flags(self, key: str) -> list[bool] | None:
        """An array of booleans, or None."""
        value = self._get(key)
        if value is None:
            return None
        if not isinstance(value, np.ndarray) or value.dtype != bool:
            raise self.error(f"metadata {self._name(key)!r}: expected an array of booleans")
        return value.tolist()

    def shape(self, tensor: str) -> tuple[int, ...]:
        if tensor not in self._header.tensors:
            raise self.error(f"tensor {tensor!r} is missing")
        return self._header.tensors[tensor].shape

    def has_tensor(self, tensor: str) -> bool:
        return tensor in self._header.tensors

    def _name(self, key: str) -> str:
        return f"{self.arch}.{key}"

    def _get(self, key: str) -> Any:
        return self._header.metadata.get(self._name(key))

    def _checked(self, key: str, value: Any, kind: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, kind):
            found = "is missing" if value is None else f"has the wrong type ({type(value).__name__})"
            name = key if key.startswith("general.") else self._name(key)
            raise self.error(f"metadata {name!r} {found}")
        return value


def hf_config(header: GgufHeader, rope_factors: Callable[[], np.ndarray] | None = None) -> dict[str, Any]:
    """The Hugging Face configuration of a GGUF file.

    ``rope_factors`` reads the tensor ``rope_freqs.weight`` if there is one. Raises ``CheckpointError`` for unknown
    architectures and for variants that the configuration cannot express.
    """
    fields = Fields(header)
    if fields.arch not in ARCHITECTURES:
        raise fields.error(f"architecture {fields.arch!r} is not supported; supported: {', '.join(ARCHITECTURES)}")
    if fields.optional_integer("expert_count"):
        raise fields.error(f"architecture {fields.arch!r} with experts is not supported")
    config = _common(fields)
    config |= {"llama": _llama, "qwen3": _qwen3, "gemma3": _gemma3}[fields.arch](fields, config)
    scaling = _rope_scaling(fields, config, rope_factors)
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
    head_dim = fields.integer("attention.key_length", fields.integer("rope.dimension_count", max(hidden // heads, 1)))
    if fields.integer("attention.value_length", head_dim) != head_dim:
        raise fields.error("keys and values of different width are not supported in this architecture")
    if fields.integer("rope.dimension_count", head_dim) != head_dim or head_dim % 2:
        raise fields.error(
            f"rope.dimension_count differs from the head width {head_dim}, or that is odd: not supported"
        )
    vocab, width = _matrix(fields, "token_embd.weight")
    if width != hidden:
        raise fields.error(f"tensor 'token_embd.weight': expected {hidden} columns (embedding_length), found {width}")
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": fields.integer("feed_forward_length"),
        "num_hidden_layers": fields.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": fields.integer("context_length"),
        "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": not fields.has_tensor("output.weight"),
        "attention_bias": fields.has_tensor("blk.0.attn_q.bias"),
    }


def _matrix(fields: Fields, tensor: str) -> tuple[int, int]:
    shape = fields.shape(tensor)
    if len(shape) != 2:
        raise fields.error(f"tensor {tensor!r}: expected 2 dimensions, found shape {list(shape)}")
    return shape[0], shape[1]


def _llama(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "mlp_bias": fields.has_tensor("blk.0.ffn_gate.bias"),
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
    sliding = fields.flags("attention.sliding_window_pattern")
    if sliding is None:
        sliding = [(layer + 1) % _GEMMA3_PERIOD != 0 for layer in range(n_layers)]
    if len(sliding) != n_layers:
        raise fields.error(f"attention.sliding_window_pattern has {len(sliding)} entries for {n_layers} layers")
    is_27b = n_layers == _GEMMA3_27B_LAYERS
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": config["hidden_size"] // config["num_attention_heads"]
        if is_27b
        else config["head_dim"],
        "sliding_window": fields.integer("attention.sliding_window"),
        "layer_types": ["sliding_attention" if local else "full_attention" for local in sliding],
        "rope_theta": fields.number("rope.freq_base", 1_000_000.0),
        "rope_local_base_freq": fields.number("rope.freq_base_swa", _GEMMA3_LOCAL_THETA),
        "final_logit_softcapping": fields.optional_number("final_logit_softcapping"),
        "attn_logit_softcapping": fields.optional_number("attn_logit_softcapping"),
    }


def _rope_scaling(
    fields: Fields, config: dict[str, Any], rope_factors: Callable[[], np.ndarray] | None
) -> dict[str, Any] | None:
    if rope_factors is not None:
        return _llama3_scaling(fields, config, rope_factors())
    factor = fields.number("rope.scaling.factor", 1.0)
    kind = fields.text("rope.scaling.type", "none" if factor == 1.0 else "linear")
    original = fields.optional_integer("rope.scaling.original_context_length")
    if kind == "none":
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        scaling: dict[str, Any] = {"rope_type": "yarn", "factor": factor}
        if original is not None:
            scaling["original_max_position_embeddings"] = original
        return scaling
    raise fields.error(f"rope scaling {kind!r} is not supported; supported: none, linear, yarn, and llama3 tables")


def _llama3_scaling(fields: Fields, config: dict[str, Any], found: np.ndarray) -> dict[str, Any]:
    """The llama3 parameters behind a table of frequency divisors.

    The file has the table only. Every published model uses wavelength factors 1 and 4 and an original context of
    8192; the table that they give is compared with the file's.
    """
    half = config["head_dim"] // 2
    if found.shape != (half,):
        raise fields.error(f"tensor 'rope_freqs.weight': expected shape [{half}], found {list(found.shape)}")
    original = fields.integer("rope.scaling.original_context_length", 8192)
    scaling = {
        "rope_type": "llama3",
        "factor": float(found.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": original,
    }
    if not np.allclose(found, llama3_divisors(config["rope_theta"], half, scaling), rtol=1e-4):
        raise fields.error(
            "tensor 'rope_freqs.weight' is not a llama3 table (wavelength factors 1 and 4): not supported"
        )
    return scaling


def llama3_divisors(theta: float, half: int, scaling: Mapping[str, Any]) -> np.ndarray:
    """What llama3 scaling divides each of the ``half`` inverse frequencies by (``_compute_llama3_parameters`` of
    transformers, as a divisor)."""
    wavelength = 2 * np.pi * theta ** (np.arange(half) / half)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] / wavelength
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return 1.0 / (blend + (1.0 - blend) / scaling["factor"])
