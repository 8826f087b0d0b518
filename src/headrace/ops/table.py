"""The operator table: which implementation of each operator a build uses. This is the one selection rule.

An operator is a name with implementations in order of preference. The first one that exists for device and dtype is
taken, unless the build forces another by name. Native and CUDA implementations are added as rows here and nowhere else.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from headrace.cache.specs import CacheSpec, RecurrentState
from headrace.core.errors import ConfigError, did_you_mean
from headrace.quant.formats import BlockFormat, BlockRows

from .attention import AttentionBackend, EncoderAttention
from .batch import Batch
from .block_linear import MakeBlockLinear
from .latent import PerHead
from .linear import LinearOps
from .low_rank import LowRankOps
from .moe import ExpertOps, Routing
from .recurrent import RecurrentOps, step_rows

ANY_DEVICE = frozenset({"cpu", "cuda", "mps", "xpu"})
ANY_DTYPE = frozenset({torch.float32, torch.bfloat16, torch.float16})
NATIVE_DTYPE = frozenset({torch.float32, torch.bfloat16})
ONE_BYTE = frozenset({torch.int8, torch.float8_e4m3fn})
"""What a cache may be in beside what activations may be in."""

FORCE_VARIABLE = "HEADRACE_OPS"
"""Environment variable that forces implementations: ``read_forced`` says how."""


@dataclass(frozen=True, slots=True)
class Implementation:
    """One way to compute an operator. The module is imported when it is selected, not before."""

    name: str
    module: str
    attribute: str
    devices: frozenset[str]
    dtypes: frozenset[torch.dtype] = ANY_DTYPE
    """Of parameters and activations; of a cache too, beside ``ONE_BYTE``."""
    needs_core: bool = False
    """Exists only where the native core does."""

    def load(self) -> Any:
        return getattr(importlib.import_module(self.module, __package__), self.attribute)


@dataclass(frozen=True, slots=True)
class Ops:
    """The operators of a build. Shapes and formulas are in the docstrings of ``ops/reference``."""

    linear: LinearOps
    block_linear: MakeBlockLinear
    """Makes linear operators for weights in blocks."""
    low_rank: LowRankOps
    round_blocks: Callable[[torch.Tensor, BlockFormat], BlockRows]
    rms_norm: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
    rms_norm_plus_one: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
    layer_norm: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
    layer_norm_plus_one: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
    rope_angles: Callable[[torch.Tensor, torch.Tensor, float], Any]
    """What it returns is opaque to layers: only the ``rope`` of the same implementation reads it."""
    rope: Callable[[torch.Tensor, Any], torch.Tensor]
    silu_mul: Callable[[torch.Tensor], torch.Tensor]
    gelu_tanh_mul: Callable[[torch.Tensor], torch.Tensor]
    gelu: Callable[[torch.Tensor], torch.Tensor]
    relu_squared: Callable[[torch.Tensor], torch.Tensor]
    clamped_glu: Callable[[torch.Tensor, float], torch.Tensor]
    sigmoid_mul: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    soft_cap: Callable[[torch.Tensor, float], torch.Tensor]
    add: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    add_scaled: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
    scale: Callable[[torch.Tensor, float], torch.Tensor]
    position_scale: Callable[[torch.Tensor, torch.Tensor, float, float], torch.Tensor]
    softmax_top_k: Callable[..., Routing]
    sigmoid_top_k: Callable[..., Routing]
    experts: ExpertOps
    per_head: PerHead
    attention: AttentionBackend
    encoder_attention: EncoderAttention
    recurrent: RecurrentOps
    chosen: Mapping[str, str] = field(default_factory=dict)
    """Operator name -> implementation name, for reports."""

    def plan(self, batch: Batch, group: int, spec: CacheSpec) -> Any:
        """The metadata of one cache group for one step, from those who work on its memory. Whoever gathers the batch
        calls it once a group and stores the result in ``batch.groups[group].metadata``; what stands there from an
        earlier step may be filled again."""
        if isinstance(spec, RecurrentState):
            return self.recurrent.plan(step_rows(batch, group), batch.groups[group].metadata)
        return self.attention.plan(batch, group, spec)


def _reference(module: str, attribute: str) -> Implementation:
    return Implementation("reference", f".reference.{module}", attribute, ANY_DEVICE)


def _native(module: str, attribute: str) -> Implementation:
    return Implementation("native", f".native.{module}", attribute, frozenset({"cpu"}), NATIVE_DTYPE, needs_core=True)


TABLE: dict[str, tuple[Implementation, ...]] = {
    "linear": (_native("linear", "LINEAR"), _reference("linear", "LINEAR")),
    "block_linear": (_native("block_linear", "make"), _reference("block_linear", "make")),
    "low_rank": (_native("low_rank", "LOW_RANK"), _reference("low_rank", "LOW_RANK")),
    "round_blocks": (_native("round_blocks", "round_blocks"), _reference("round_blocks", "round_blocks")),
    "rms_norm": (_native("norm", "rms_norm"), _reference("norm", "rms_norm")),
    "rms_norm_plus_one": (_native("norm", "rms_norm_plus_one"), _reference("norm", "rms_norm_plus_one")),
    "layer_norm": (_native("norm", "layer_norm"), _reference("norm", "layer_norm")),
    "layer_norm_plus_one": (_native("norm", "layer_norm_plus_one"), _reference("norm", "layer_norm_plus_one")),
    "rope_angles": (_native("rope", "rope_angles"), _reference("rope", "rope_angles")),
    "rope": (_native("rope", "rope"), _reference("rope", "rope")),
    "silu_mul": (_native("elementwise", "silu_mul"), _reference("activation", "silu_mul")),
    "gelu_tanh_mul": (_native("elementwise", "gelu_tanh_mul"), _reference("activation", "gelu_tanh_mul")),
    "gelu": (_native("elementwise", "gelu"), _reference("activation", "gelu")),
    "relu_squared": (_native("elementwise", "relu_squared"), _reference("activation", "relu_squared")),
    "sigmoid_mul": (_native("elementwise", "sigmoid_mul"), _reference("activation", "sigmoid_mul")),
    "clamped_glu": (_native("elementwise", "clamped_glu"), _reference("activation", "clamped_glu")),
    "soft_cap": (_native("elementwise", "soft_cap"), _reference("activation", "soft_cap")),
    "add": (_native("elementwise", "add"), _reference("activation", "add")),
    "add_scaled": (_native("elementwise", "add_scaled"), _reference("activation", "add_scaled")),
    "scale": (_native("elementwise", "scale"), _reference("activation", "scale")),
    "position_scale": (_native("elementwise", "position_scale"), _reference("activation", "position_scale")),
    "softmax_top_k": (_native("moe", "softmax_top_k"), _reference("moe", "softmax_top_k")),
    "sigmoid_top_k": (_native("moe", "sigmoid_top_k"), _reference("moe", "sigmoid_top_k")),
    "experts": (_native("moe", "EXPERTS"), _reference("moe", "EXPERTS")),
    "per_head": (_native("latent", "PER_HEAD"), _reference("latent", "PER_HEAD")),
    "attention": (_native("attention", "BACKEND"), _reference("attention", "BACKEND")),
    "encoder_attention": (
        _native("attention", "encoder_attention"),
        _reference("attention", "encoder_attention"),
    ),
    "recurrent": (_native("recurrent", "RECURRENT"), _reference("recurrent", "RECURRENT")),
}
"""Operator name -> implementations, the preferred one first."""


def select_ops(
    device: torch.device | str,
    dtype: torch.dtype,
    forced: str | Mapping[str, str] | None = None,
    *,
    kv_dtype: torch.dtype | None = None,
) -> Ops:
    """The operators for ``device``, and parameters and activations of ``dtype``.

    Args:
        kv_dtype: of the cache, which decides about attention too; None: ``dtype``.
        forced: an implementation name for all operators, or operator name -> implementation name for some.

    Raises:
        ConfigError: ``forced`` names an operator or implementation that does not exist, or not for this device and
            dtype, or not on this machine; or HEADRACE_ISA names a level that cannot run here.
    """
    kind = torch.device(device).type
    wanted = dict.fromkeys(TABLE, forced) if isinstance(forced, str) else dict(forced or {})
    for name in wanted:
        if name not in TABLE:
            raise ConfigError(
                f"no operator is called {name!r}; there are {', '.join(TABLE)}.{did_you_mean(name, TABLE)}"
            )
    dtypes = dict.fromkeys(TABLE, (dtype,)) | {"attention": (dtype, kv_dtype or dtype)}
    picked = {name: _pick(name, kind, dtypes[name], wanted.get(name)) for name in TABLE}
    return Ops(
        **{name: implementation.load() for name, implementation in picked.items()},
        chosen={name: implementation.name for name, implementation in picked.items()},
    )


def read_forced(text: str) -> str | dict[str, str] | None:
    """What ``select_ops`` takes as ``forced``, from text: "reference" for all operators, "linear=reference,rope=native"
    for some, nothing for none.

    Raises ConfigError for text of another form.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if len(parts) == 1 and "=" not in parts[0]:
        return parts[0]
    pairs = dict(part.split("=", 1) for part in parts if "=" in part)
    if len(pairs) != len(parts):
        raise ConfigError(
            f"{FORCE_VARIABLE}={text!r}: expected the name of an implementation, such as reference, or"
            " operator=implementation, separated by commas, each operator once"
        )
    return pairs or None


def _pick(operator: str, device: str, dtypes: tuple[torch.dtype, ...], wanted: str | None) -> Implementation:
    """Attention has two dtypes: of activations, and of the cache."""
    from .native import core

    for row in TABLE[operator]:
        can = row.dtypes | (ONE_BYTE if operator == "attention" else frozenset())
        fits = device in row.devices and can.issuperset(dtypes) and (core.is_available() or not row.needs_core)
        if fits and wanted in (None, row.name):
            return row
    there = ", ".join(_describe(row, core.reason()) for row in TABLE[operator])
    asked = f"implementation {wanted!r}" if wanted else "any implementation"
    kinds = " over ".join(str(dtype) for dtype in dict.fromkeys(dtypes))
    raise ConfigError(
        f"operator {operator!r} does not have {asked} for device {device!r} and {kinds}; there are: {there}"
    )


def _describe(row: Implementation, core_missing: str) -> str:
    dtypes = "any dtype" if row.dtypes == ANY_DTYPE else " or ".join(sorted(str(dtype) for dtype in row.dtypes))
    missing = f"; not here: {core_missing}" if row.needs_core and core_missing else ""
    return f"{row.name} (on {', '.join(sorted(row.devices))}, {dtypes}{missing})"
