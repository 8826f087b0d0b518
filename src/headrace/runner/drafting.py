"""Which drafter a setting stands for: the models that draft in the worker, and how they are put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from headrace.cache.groups import CacheGroup
from headrace.core.errors import ConfigError
from headrace.core.speculative import DecodingBaseConfig, EagleDecodingConfig
from headrace.layers.base import BuildContext
from headrace.models.base import Decoder, Model
from headrace.models.eagle3 import ARCHITECTURES, Eagle3Head, is_head, tapped_layers
from headrace.models.registry import build_model
from headrace.models.taps import NO_TAPS, Taps, n_layers, tap_layers
from headrace.ops.table import Ops
from headrace.quant.formats import INT8
from headrace.quant.schemes import NO_SCHEME, AtLoad
from headrace.sampling import Sampler
from headrace.weights.checkpoint import Checkpoint

from .draft_head import HeadDrafter
from .draft_model import ModelDrafter, check_draft_model
from .drafter import NO_DRAFTER, Drafter
from .graph import Graphs
from .scheme import scheme_for
from .slots import SlotTable


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What a model is made from."""

    config: dict[str, Any]
    """In the Hugging Face dialect."""
    checkpoint: Checkpoint | None
    """None for random weights (``load_format="dummy"``). Closed when its weights are read."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a drafter works with, of the worker that it is built into."""

    make_sampler: Callable[[], Sampler]
    ops: Ops
    groups: Sequence[CacheGroup]
    slots: SlotTable
    make_graphs: Callable[[Model, Taps], Graphs]
    device: torch.device


class Drafting(Protocol):
    """A way to draft, before there are weights or a cache."""

    models: tuple[Model, ...]
    """Whose weights are to be loaded and whose layers have a cache."""
    taps: Taps
    """Of the target."""

    def build(self, parts: Parts) -> Drafter: ...


class _ByTheHost:
    models: tuple[Model, ...] = ()
    taps = NO_TAPS

    def build(self, parts: Parts) -> Drafter:
        return NO_DRAFTER


class _ByModel:
    taps = NO_TAPS

    def __init__(self, source: ModelSource, ctx: BuildContext, algorithm: str | None, target: Model, max_seq_len: int):
        scheme = scheme_for(algorithm, source.checkpoint, ctx.ops.round_blocks)
        draft = build_model(source.config, replace(ctx, scheme=scheme))
        check_draft_model(draft, target, max_seq_len)
        self.models: tuple[Model, ...] = (draft,)

    def build(self, parts: Parts) -> Drafter:
        (draft,) = self.models
        graphs = parts.make_graphs(draft, NO_TAPS)
        return ModelDrafter(draft, parts.make_sampler(), parts.ops, parts.groups, parts.slots, graphs, parts.device)


class _ByHead:
    def __init__(self, source: ModelSource, ctx: BuildContext, config: EagleDecodingConfig, target: Model) -> None:
        checkpoint = source.checkpoint
        if checkpoint is None or not is_head(source.config):
            raise ConfigError(
                f"EagleDecodingConfig.speculative_model is a {source.config.get('architectures')}; an EAGLE-3 head is"
                f" one of {', '.join(ARCHITECTURES)}. A whole model drafts with DraftTargetDecodingConfig."
            )
        if not isinstance(target, Decoder) or target.score is not None:
            raise ConfigError(f"EagleDecodingConfig: {type(target).__name__} gives no tokens to draft")
        layers = tapped_layers(
            source.config, n_layers(target), config.eagle3_layers_to_capture, config.eagle3_layer_ids
        )
        sizes = (target.head.weight.shape[1], target.vocab_size, len(layers))
        # Calls, not layers: what belongs to the target is not the head's to load.
        tables = (target.embed.__call__, target.head.__call__)
        # No output depends on it, and a draft costs what reading its weights costs: 8 bits, but where all is exact.
        scheme = NO_SCHEME if ctx.dtype is torch.float32 else AtLoad(INT8, ctx.ops.round_blocks)
        self.head = Eagle3Head(source.config, replace(ctx, scheme=scheme), checkpoint, *tables, sizes)
        self.models: tuple[Model, ...] = (self.head,)
        self.taps = tap_layers(target, layers, "EagleDecodingConfig.eagle3_layers_to_capture, or the head's own ids")
        self._vocab_size = target.vocab_size

    def build(self, parts: Parts) -> Drafter:
        graphs = (parts.make_graphs(self.head, self.head.taps), parts.make_graphs(self.head, self.head.taps))
        return HeadDrafter(
            self.head, self.taps, parts.make_sampler(), self._vocab_size, parts.ops, parts.groups, parts.slots, graphs,
            parts.device,
        )  # fmt: skip


def drafting_by(
    config: DecodingBaseConfig | None,
    sources: Sequence[ModelSource],
    ctx: BuildContext,
    algorithm: str | None,
    target: Model,
    max_seq_len: int,
) -> Drafting:
    """``sources``: of what drafts, if that is a model; ``algorithm``: how weights are kept.

    Raises ``ConfigError`` or ``ModelError`` for a model that cannot draft for the target.
    """
    if not sources:
        return _ByTheHost()
    (source,) = sources
    if isinstance(config, EagleDecodingConfig):
        return _ByHead(source, ctx, config, target)
    return _ByModel(source, ctx, algorithm, target, max_seq_len)
