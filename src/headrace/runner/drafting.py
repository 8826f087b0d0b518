"""Which drafter a setting stands for: the models that draft in the worker, and how they are put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from headrace.core.errors import ConfigError
from headrace.core.speculative import (
    DecodingBaseConfig,
    DraftTargetDecodingConfig,
    EagleDecodingConfig,
    MTPDecodingConfig,
)
from headrace.layers.base import BuildContext
from headrace.models.base import Decoder, Model
from headrace.models.eagle3 import ARCHITECTURES, Eagle3Head, is_head, tapped_layers
from headrace.models.mtp import MtpHead, mtp_heads
from headrace.models.registry import build_model
from headrace.models.taps import NO_TAPS, Taps, n_layers, tap_layers, tap_norm
from headrace.ops.table import Ops
from headrace.quant.formats import INT8
from headrace.quant.schemes import NO_SCHEME, AtLoad, Scheme
from headrace.sampling import CandidateFinder, Sampler
from headrace.weights.checkpoint import Checkpoint

from .draft_head import HeadDrafter
from .draft_model import ModelDrafter, check_draft_model
from .draft_tree import TreeDrafter
from .drafter import NO_DRAFTER, Drafter
from .graph import Graphs
from .head_keys import HeadKeys
from .head_rows import HeadRows, Pass
from .lanes import Lanes
from .mtp_cascade import MtpCascade
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
    keys: HeadKeys
    slots: SlotTable
    make_graphs: Callable[[Model, Taps], Graphs]
    """Over the groups of ``keys``."""
    device: torch.device
    lanes: Lanes
    views: Sequence[torch.Tensor]
    """Of the layers of what drafts, by group: ``Lanes.layers_from``."""


class Drafting(Protocol):
    """A way to draft, before there are weights or a cache."""

    models: tuple[Model, ...]
    """Whose weights are to be loaded and whose layers have a cache."""
    sources: tuple[ModelSource, ...]
    """What each of them is loaded from."""
    taps: Taps
    """Of the target."""
    has_own_cache: bool
    """The models' keys and values lie apart from the target's."""

    def build(self, parts: Parts) -> Drafter: ...


class _ByTheHost:
    models: tuple[Model, ...] = ()
    sources: tuple[ModelSource, ...] = ()
    taps = NO_TAPS
    has_own_cache = False

    def build(self, parts: Parts) -> Drafter:
        return NO_DRAFTER


class _ByModel:
    taps = NO_TAPS
    has_own_cache = False

    def __init__(self, source: ModelSource, ctx: BuildContext, algorithm: str | None, target: Model, max_seq_len: int):
        scheme = scheme_for(algorithm, source.checkpoint, ctx.ops.round_blocks)
        draft = build_model(source.config, replace(ctx, scheme=scheme))
        check_draft_model(draft, target, max_seq_len)
        self.models: tuple[Model, ...] = (draft,)
        self.sources = (source,)

    def build(self, parts: Parts) -> Drafter:
        (draft,) = self.models
        graphs = parts.make_graphs(draft, NO_TAPS)
        return ModelDrafter(
            draft, parts.make_sampler(), parts.ops, parts.keys.groups, parts.slots, graphs, parts.device
        )


class _ByHead:
    """One head, which goes on from its own states. ``counter``: of the tokens that it drafts; ``width``: of trees of
    them; None: chains."""

    def __init__(
        self,
        head: Eagle3Head | MtpHead,
        source: ModelSource,
        taps: Taps,
        vocab_size: int,
        counter: str,
        *,
        has_own_cache: bool,
        width: int | None = None,
    ) -> None:
        self._head, self._vocab_size, self._counter, self._width = head, vocab_size, counter, width
        self.has_own_cache = has_own_cache
        self.models: tuple[Model, ...] = (head,)
        self.sources = (source,)
        self.taps = taps

    def build(self, parts: Parts) -> Drafter:
        head = self._head
        first, further = (Pass(head, parts.make_graphs(head, head.taps)) for _ in range(2))
        rows = _rows(parts, self._vocab_size, head.token_ids)
        chain = HeadDrafter(first, further, self.taps, rows, self._counter)
        if self._width is None:
            return chain
        finder = CandidateFinder(parts.slots.n_slots, self._vocab_size, head.token_ids, self._width)
        return TreeDrafter(chain, finder, self._width, parts.lanes, parts.views, parts.slots)


class _ByCascade:
    """A head for each draft, in order."""

    has_own_cache = False

    def __init__(self, heads: Sequence[MtpHead], source: ModelSource, taps: Taps) -> None:
        self._heads = tuple(heads)
        self.models: tuple[Model, ...] = self._heads
        self.sources = (source,) * len(self._heads)
        self.taps = taps

    def build(self, parts: Parts) -> Drafter:
        passes = [Pass(head, parts.make_graphs(head, head.taps), 1 + i) for i, head in enumerate(self._heads)]
        rows = _rows(parts, self._heads[0].vocab_size, self._heads[0].token_ids)
        return MtpCascade(passes, self.taps, rows, "mtp_tokens")


def _rows(parts: Parts, vocab_size: int, token_ids: torch.Tensor) -> HeadRows:
    return HeadRows(parts.make_sampler(), vocab_size, token_ids, parts.ops, parts.keys, parts.slots, parts.device)


def _by_eagle3(source: ModelSource, ctx: BuildContext, config: EagleDecodingConfig, target: Model) -> Drafting:
    checkpoint = source.checkpoint
    if checkpoint is None or not is_head(source.config):
        raise ConfigError(
            f"EagleDecodingConfig.speculative_model is a {source.config.get('architectures')}; an EAGLE-3 head is"
            f" one of {', '.join(ARCHITECTURES)}. A whole model drafts with DraftTargetDecodingConfig."
        )
    target = _generating(target, "EagleDecodingConfig")
    layers = tapped_layers(source.config, n_layers(target), config.eagle3_layers_to_capture, config.eagle3_layer_ids)
    sizes = (target.head.weight.shape[1], target.vocab_size, len(layers))
    # Calls, not layers: what belongs to the target is not the head's to load.
    tables = (target.embed.__call__, target.head.__call__)  # type: ignore[attr-defined]
    head = Eagle3Head(source.config, replace(ctx, scheme=_of_heads(ctx)), checkpoint, *tables, sizes)
    taps = tap_layers(target, layers, "EagleDecodingConfig.eagle3_layers_to_capture, or the head's own ids")
    apart = not config.eagle3_one_model
    width = config.dynamic_tree_max_topK if config.use_dynamic_tree else None
    return _ByHead(head, source, taps, target.vocab_size, "draft_head_tokens", has_own_cache=apart, width=width)


def _by_mtp(
    sources: Sequence[ModelSource], ctx: BuildContext, algorithm: str | None, config: MTPDecodingConfig, target: Model
) -> Drafting:
    target = _generating(target, "MTPDecodingConfig")
    source = sources[-1]
    # Its own layer is kept as the model is; one of another folder as any draft head.
    own = config.speculative_model is None
    scheme = scheme_for(algorithm, source.checkpoint, ctx.ops.round_blocks) if own else _of_heads(ctx)
    where = "the model's checkpoint" if own else f"speculative_model={config.speculative_model!r}"

    def of_checkpoint() -> list[MtpHead]:
        return mtp_heads(source.config, replace(ctx, scheme=scheme), source.checkpoint, target, where)

    heads = of_checkpoint()
    if config.use_mtp_vanilla:
        while len(heads) < config.max_draft_len:
            heads += of_checkpoint()
        return _ByCascade(heads[: config.max_draft_len], source, tap_norm(target))
    apart = not config.mtp_eagle_one_model
    return _ByHead(heads[0], source, tap_norm(target), target.vocab_size, "mtp_tokens", has_own_cache=apart)


def _generating(target: Model, config: str) -> Decoder:
    if not isinstance(target, Decoder) or target.score is not None:
        raise ConfigError(f"{config}: {type(target).__name__} gives no tokens to draft")
    return target


def _of_heads(ctx: BuildContext) -> Scheme:
    """No output depends on a head, and a draft costs what reading its weights costs: 8 bits, but where all is exact."""
    return NO_SCHEME if ctx.dtype is torch.float32 else AtLoad(INT8, ctx.ops.round_blocks)


def drafting_by(
    config: DecodingBaseConfig | None,
    sources: Sequence[ModelSource],
    ctx: BuildContext,
    algorithm: str | None,
    target: Model,
    max_seq_len: int,
) -> Drafting:
    """``sources``: of the target, and of what drafts if that has files of its own; ``algorithm``: how weights are kept.

    Raises ``ConfigError`` or ``ModelError`` for a model that cannot draft for the target.
    """
    match config:
        case EagleDecodingConfig():
            return _by_eagle3(sources[-1], ctx, config, target)
        case MTPDecodingConfig():
            return _by_mtp(sources, ctx, algorithm, config, target)
        case DraftTargetDecodingConfig():
            return _ByModel(sources[-1], ctx, algorithm, target, max_seq_len)
    return _ByTheHost()
