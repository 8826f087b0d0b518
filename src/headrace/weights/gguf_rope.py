"""Rope scaling of a GGUF file as ``rope_scaling`` of a ``config.json``.

Metadata names the kind; a tensor of the file may hold the factors of single frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .gguf_fields import Fields

ReadVector = Callable[[str], np.ndarray]
"""The values of a one-dimensional tensor by its name in the file."""

_LLAMA3_TABLE = "rope_freqs.weight"
_SHORT, _LONG = "rope_factors_short.weight", "rope_factors_long.weight"


def rope_scaling(fields: Fields, config: dict[str, Any], read: ReadVector) -> dict[str, Any] | None:
    """``config`` has ``head_dim``, ``rope_theta`` and ``max_position_embeddings``. None: positions are not scaled.

    Raises ``CheckpointError`` for kinds and tables that the configuration cannot express.
    """
    if fields.has_tensor(_LLAMA3_TABLE):
        return _llama3_scaling(fields, config, read(_LLAMA3_TABLE))
    if fields.has_tensor(_LONG):
        return _long_scaling(fields, read)
    factor = fields.number("rope.scaling.factor", 1.0)
    kind = fields.text("rope.scaling.type", "none" if factor == 1.0 else "linear")
    original = fields.optional_integer("rope.scaling.original_context_length")
    if kind == "none":
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return _yarn_scaling(fields, factor, original)
    raise fields.error(
        f"rope scaling {kind!r} is not supported; supported: none, linear, yarn, and tables (llama3, longrope)"
    )


def _yarn_scaling(fields: Fields, factor: float, original: int | None) -> dict[str, Any]:
    """``yarn_log_multiplier`` is a tenth of ``mscale_all_dim``; DeepSeek's models have the same for ``mscale``."""
    scaling: dict[str, Any] = {"rope_type": "yarn", "factor": factor}
    if original is not None:
        scaling["original_max_position_embeddings"] = original
    for name in ("beta_fast", "beta_slow"):
        value = fields.optional_number(f"rope.scaling.yarn_{name}")
        if value is not None:
            scaling[name] = value
    if fields.arch == "deepseek2" and (gain := fields.optional_number("rope.scaling.yarn_log_multiplier")):
        scaling |= {"mscale": round(10 * gain, 6), "mscale_all_dim": round(10 * gain, 6)}
    if fields.arch == "gpt-oss":
        scaling["truncate"] = False
    return scaling


def _long_scaling(fields: Fields, read: ReadVector) -> dict[str, Any]:
    """The two lists of long rope. ``rope.scaling.attn_factor`` is left out where it says what the lengths say."""
    fields.shape(_SHORT)
    original = fields.integer("rope.scaling.original_context_length")
    if original < 2:
        raise fields.error("metadata rope.scaling.original_context_length is 1, expected at least 2 with long rope")
    scaling: dict[str, Any] = {
        "rope_type": "longrope",
        "short_factor": _decimals(read(_SHORT)),
        "long_factor": _decimals(read(_LONG)),
        "original_max_position_embeddings": original,
    }
    given = fields.optional_number("rope.scaling.attn_factor")
    if given is not None and not math.isclose(given, _long_attention(fields, original), rel_tol=1e-6):
        scaling["attention_factor"] = given
    return scaling


def _long_attention(fields: Fields, original: int) -> float:
    """What long rope multiplies cosines and sines by (``_compute_longrope_parameters`` of transformers)."""
    ratio = fields.integer("context_length") / original
    return math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 else 1.0


def _decimals(values: np.ndarray) -> list[float]:
    """Each float32 as the shortest decimal that means it."""
    return [float(str(value)) for value in values]


def _llama3_scaling(fields: Fields, config: dict[str, Any], found: np.ndarray) -> dict[str, Any]:
    """The llama3 parameters behind a table of frequency divisors.

    The file has the table only. Every published model uses wavelength factors 1 and 4 (Llama 4: 1 and 1) and an
    original context of 8192; the table that they give is compared with the file's.
    """
    half = config["head_dim"] // 2
    if found.shape != (half,):
        raise fields.error(f"tensor 'rope_freqs.weight': expected shape [{half}], found {list(found.shape)}")
    original = fields.integer("rope.scaling.original_context_length", 8192)
    high = 1.0 if fields.arch == "llama4" else 4.0
    scaling = {
        "rope_type": "llama3",
        "factor": float(found.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
    if not np.allclose(found, llama3_divisors(config["rope_theta"], half, scaling), rtol=1e-4):
        raise fields.error(
            f"tensor 'rope_freqs.weight' is not a llama3 table (wavelength factors 1 and {high:g}): not supported"
        )
    return scaling


def llama3_divisors(theta: float, half: int, scaling: Mapping[str, Any]) -> np.ndarray:
    """What llama3 scaling divides each of the ``half`` inverse frequencies by (``_compute_llama3_parameters`` of
    transformers, as a divisor)."""
    wavelength = 2 * np.pi * theta ** (np.arange(half) / half)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] / wavelength
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0) if high > low else (turns >= low).astype(float)
    return 1.0 / (blend + (1.0 - blend) / scaling["factor"])
