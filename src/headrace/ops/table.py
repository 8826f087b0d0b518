"""The operator table: which implementation of each operator a build uses. This is the one selection rule.

An operator is a name with implementations in order of preference. The first one that exists for the device is taken,
unless the build forces another by name. Native and CUDA implementations are added as rows here and nowhere else.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from headrace.core.errors import ConfigError, did_you_mean

from .attention import AttentionBackend

ANY_DEVICE = frozenset({"cpu", "cuda", "mps", "xpu"})


@dataclass(frozen=True, slots=True)
class Implementation:
    """One way to compute an operator. The module is imported when it is selected, not before."""

    name: str
    module: str
    attribute: str
    devices: frozenset[str]

    def load(self) -> Any:
        return getattr(importlib.import_module(self.module, __package__), self.attribute)


@dataclass(frozen=True, slots=True)
class Ops:
    """The operators of a build. Shapes and formulas are in the docstrings of ``ops/reference``."""

    linear: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
    embedding: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    rms_norm: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
    rms_norm_plus_one: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
    layer_norm_plus_one: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
    rope_angles: Callable[[torch.Tensor, torch.Tensor, float], Any]
    """What it returns is opaque to layers: only the ``rope`` of the same implementation reads it."""
    rope: Callable[[torch.Tensor, Any], torch.Tensor]
    silu_mul: Callable[[torch.Tensor], torch.Tensor]
    gelu_tanh_mul: Callable[[torch.Tensor], torch.Tensor]
    relu_squared: Callable[[torch.Tensor], torch.Tensor]
    soft_cap: Callable[[torch.Tensor, float], torch.Tensor]
    attention: AttentionBackend
    chosen: Mapping[str, str] = field(default_factory=dict)
    """Operator name -> implementation name, for reports."""


def _reference(module: str, attribute: str) -> Implementation:
    return Implementation("reference", f".reference.{module}", attribute, ANY_DEVICE)


TABLE: dict[str, tuple[Implementation, ...]] = {
    "linear": (_reference("linear", "linear"),),
    "embedding": (_reference("linear", "embedding"),),
    "rms_norm": (_reference("norm", "rms_norm"),),
    "rms_norm_plus_one": (_reference("norm", "rms_norm_plus_one"),),
    "layer_norm_plus_one": (_reference("norm", "layer_norm_plus_one"),),
    "rope_angles": (_reference("rope", "rope_angles"),),
    "rope": (_reference("rope", "rope"),),
    "silu_mul": (_reference("activation", "silu_mul"),),
    "gelu_tanh_mul": (_reference("activation", "gelu_tanh_mul"),),
    "relu_squared": (_reference("activation", "relu_squared"),),
    "soft_cap": (_reference("activation", "soft_cap"),),
    "attention": (_reference("attention", "BACKEND"),),
}
"""Operator name -> implementations, the preferred one first."""


def select_ops(device: torch.device | str, forced: str | Mapping[str, str] | None = None) -> Ops:
    """The operators for ``device``.

    Args:
        forced: an implementation name for all operators, or operator name -> implementation name for some.

    Raises:
        ConfigError: ``forced`` names an operator or implementation that does not exist, or not for this device.
    """
    kind = torch.device(device).type
    wanted = dict.fromkeys(TABLE, forced) if isinstance(forced, str) else dict(forced or {})
    for name in wanted:
        if name not in TABLE:
            raise ConfigError(
                f"no operator is called {name!r}; there are {', '.join(TABLE)}.{did_you_mean(name, TABLE)}"
            )
    picked = {name: _pick(name, kind, wanted.get(name)) for name in TABLE}
    return Ops(
        **{name: implementation.load() for name, implementation in picked.items()},
        chosen={name: implementation.name for name, implementation in picked.items()},
    )


def _pick(operator: str, device: str, wanted: str | None) -> Implementation:
    for implementation in TABLE[operator]:
        if device in implementation.devices and wanted in (None, implementation.name):
            return implementation
    there = ", ".join(f"{row.name} (on {', '.join(sorted(row.devices))})" for row in TABLE[operator])
    asked = f"implementation {wanted!r}" if wanted else "any implementation"
    raise ConfigError(f"operator {operator!r} does not have {asked} for device {device!r}; there are: {there}")
