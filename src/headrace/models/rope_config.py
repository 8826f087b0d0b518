"""Reads a model's rope, from the old dialect (``rope_theta``, ``rope_scaling``) and the new (``rope_parameters``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.core.errors import ModelError
from headrace.layers.rope import RopeSpec

from .config import REQUIRED, Fields

_ALWAYS = {"rope_theta", "partial_rotary_factor", "rope_type", "type"}
# transformers writes these beside any kind; they say where a checkpoint comes from and change nothing by themselves.
_HARMLESS = {"finetuned", "original_max_position_embeddings"}
_OF_KIND = {
    "default": set[str](),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
    "yarn": {"factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor", "truncate"},
    "longrope": {"factor", "short_factor", "long_factor", "attention_factor"},
}


def read_rope(
    fields: Fields, *, head_dim: int, max_positions: int, theta: float = 10000.0, partial: float = 1.0
) -> RopeSpec:
    """The rope of a model that has one. ``theta`` and ``partial`` are the architecture's defaults.

    Raises ModelError for an unknown kind or parameter: a rope that is read half is a model that is quietly worse.
    """
    parameters = fields.mapping("rope_parameters") or fields.mapping("rope_scaling")
    return rope_from(fields, parameters, head_dim=head_dim, max_positions=max_positions, theta=theta, partial=partial)


def rope_from(
    fields: Fields,
    parameters: Mapping[str, Any],
    *,
    head_dim: int,
    max_positions: int,
    theta: float,
    partial: float = 1.0,
) -> RopeSpec:
    """A rope from its own parameters; what they lack is taken from the top level, then ``theta`` and ``partial``."""
    own = Fields(parameters, f"{fields.where}, rope")
    kind = own.choice("rope_type", tuple(_OF_KIND), own.raw("type", "default"))
    known = _ALWAYS | _HARMLESS | _OF_KIND[kind]
    unknown = sorted(name for name, value in parameters.items() if name not in known and value is not None)
    if unknown:
        raise ModelError(
            f"{own.where}: rope of kind {kind!r} has no parameter {', '.join(unknown)}; it has {sorted(known)}"
        )
    partial = own.number("partial_rotary_factor", fields.number("partial_rotary_factor", partial))
    if partial > 1.0 or int(head_dim * partial) % 2 or int(head_dim * partial) == 0:
        raise ModelError(
            f"{own.where}: {partial:g} of head_dim {head_dim} must be an even number of values, at most all"
        )
    original = fields.integer("original_max_position_embeddings", None) or own.integer(
        "original_max_position_embeddings", REQUIRED if kind == "longrope" else max_positions
    )
    common = {
        "kind": kind,
        "theta": own.number("rope_theta", fields.number("rope_theta", theta)),
        "max_positions": max_positions,
        "partial": partial,
        "original_max_positions": original,
    }
    if kind == "longrope":
        return RopeSpec(**common, **_read_longrope(own, common, int(head_dim * partial) // 2))
    return RopeSpec(**common, **_read_kind(own, kind, max_positions / original))


def _read_longrope(own: Fields, common: Mapping[str, Any], n_frequencies: int) -> dict[str, Any]:
    original = common["original_max_positions"]
    if original < 2:
        raise ModelError(f"{own.where}: original_max_position_embeddings must be at least 2, got {original}")
    return {
        "factor": own.number("factor", common["max_positions"] / original),
        "attention_factor": own.number("attention_factor", None),
        "short_factors": own.numbers("short_factor", n_frequencies),
        "long_factors": own.numbers("long_factor", n_frequencies),
    }


def _read_kind(own: Fields, kind: str, ratio: float) -> dict[str, Any]:
    """The parameters of a kind. ``ratio``: how far beyond its pretraining the model reaches, YaRN's default factor."""
    if kind == "default":
        return {}
    if kind in ("linear", "dynamic"):
        return {"factor": own.number("factor")}
    if kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor")
        read: dict[str, Any] = {name: own.number(name) for name in names}
        if read["low_freq_factor"] > read["high_freq_factor"]:
            raise ModelError(f"{own.where}: low_freq_factor must not be above high_freq_factor, got {read}")
        return read
    return {
        "factor": own.number("factor", ratio),
        "beta_fast": own.number("beta_fast", 32.0),
        "beta_slow": own.number("beta_slow", 1.0),
        "mscale": own.number("mscale", None),
        "mscale_all_dim": own.number("mscale_all_dim", None),
        "attention_factor": own.number("attention_factor", None),
        "truncate": own.flag("truncate", True),
    }
