"""What a model takes in memory, before there are any weights: its parts in every precision, and its cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from headrace.cache.groups import CacheGroup, group_layers
from headrace.cache.specs import CacheSpec
from headrace.core.config import KvCacheConfig
from headrace.core.plan import BLOCK_TOKENS
from headrace.layers.base import BuildContext
from headrace.models.base import Model
from headrace.models.registry import architecture_of, build_model
from headrace.ops.table import select_ops
from headrace.runner.scheme import scheme_for

PRECISIONS: dict[str, tuple[torch.dtype, str | None]] = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "int8": (torch.bfloat16, "int8"),
    "int4": (torch.bfloat16, "int4"),
}
"""Name -> dtype of activations, and the ``quant_algo`` of weights."""


@dataclass(frozen=True, slots=True)
class Weights:
    """In one precision, in bytes."""

    precision: str
    nbytes: int
    step_nbytes: int
    """Of them, those that the decode step of one sequence reads: of experts, as many as a row is sent to."""


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers that keep the same of the past, in bytes of all of them, in bfloat16."""

    keeps: str
    n_layers: int
    held: tuple[int, ...]
    """While one sequence of so many tokens is decoded."""
    reusable: tuple[int, ...]
    """What its prompt of so many tokens leaves in the cache for others, if nothing else needs the room."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Of one model."""

    architecture: str
    n_params: int
    n_tensors: int
    max_positions: int
    weights: tuple[Weights, ...]
    lengths: tuple[int, ...]
    """Tokens of the sequences that ``layers`` speaks of."""
    layers: tuple[Layers, ...]


def plan(config: Mapping[str, Any], lengths: Sequence[int] = (1024, 8192, 32768)) -> Plan:
    """Of a Hugging Face configuration. Lengths beyond the model's positions are cut to those.

    Raises ModelError when the architecture, or something that the configuration asks of it, is not supported.
    """
    built = {name: _build(config, name) for name in PRECISIONS}
    model = built["bfloat16"]
    cut = tuple(dict.fromkeys(min(length, model.max_positions) for length in lengths))
    return Plan(
        architecture_of(config),
        model.n_params,
        len(model.tensor_shapes()),
        model.max_positions,
        tuple(_weights(name, one) for name, one in built.items()),
        cut,
        tuple(_layers(group, cut) for group in group_layers(model.cache_specs())),
    )


def kind(spec: CacheSpec) -> str:
    """``SlidingKV: 4 KV heads of 64, window 512``, or ``LatentKV: rank 512, rotated key of 64``."""
    reach = "".join(f", {name} {size}" for name in ("window", "chunk") if (size := getattr(spec, name, None)))
    if hasattr(spec, "rank"):
        return f"{type(spec).__name__}: rank {spec.rank}, rotated key of {spec.rope_dim}{reach}"
    if hasattr(spec, "n_floats"):
        return f"{type(spec).__name__}: {spec.n_floats:,} numbers in float32"
    return f"{type(spec).__name__}: {spec.n_kv_heads} KV heads of {spec.head_dim}{reach}"


def _build(config: Mapping[str, Any], precision: str) -> Model:
    dtype, algorithm = PRECISIONS[precision]
    ops = select_ops("cpu", dtype)
    return build_model(config, BuildContext(ops, dtype, scheme=scheme_for(algorithm, None, ops.round_blocks)))


def _weights(precision: str, model: Model) -> Weights:
    experts, share = model.expert_bytes()
    return Weights(precision, model.n_bytes, round(model.n_bytes - experts * (1.0 - share)))


def _layers(group: CacheGroup, lengths: Sequence[int]) -> Layers:
    spec = group.spec
    if not spec.of_tokens:
        each, nothing = group.block_bytes // BLOCK_TOKENS, (0,) * len(lengths)
        return Layers(f"{kind(spec)}, {each:,} bytes for a vector of media", len(group.layers), nothing, nothing)
    held = tuple(spec.peak_blocks(length, 1) * group.block_bytes for length in lengths)
    every = BLOCK_TOKENS if spec.resumes_inside else KvCacheConfig().state_checkpoint_interval
    reusable = tuple((length // every + (not spec.resumes_inside)) * group.block_bytes for length in lengths)
    if not spec.of_tokens:
        # Of pictures, not of tokens: a sequence without one has none.
        reusable = (0,) * len(lengths)
    return Layers(kind(spec), len(group.layers), held, reusable)
