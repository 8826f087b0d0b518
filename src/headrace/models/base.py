"""The contract of a model, and what all decoders share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

import torch

from headrace.cache.specs import CacheSpec
from headrace.core.errors import EngineError
from headrace.core.media import MediaItem
from headrace.core.pooling import PoolingSpec
from headrace.layers.base import CachedLayer, Layer, Parameter, Weight
from headrace.layers.cross import CrossBlock
from headrace.layers.embedding import LMHead
from headrace.layers.moe import MixtureOfExperts
from headrace.layers.recurrent import RecurrentMixer
from headrace.ops.batch import Batch
from headrace.weights.checkpoint import Checkpoint

from .loading import Progress, fill_parameters, no_progress, plan_loading, tensor_shapes


class Model(Protocol):
    """A decoder as the runner sees it: ``build_model(config, ctx)``, then load, bind_cache, forward, logits.

    Call it under ``torch.inference_mode()``. It keeps nothing between steps but its parameters and the cache it was
    bound to.
    """

    vocab_size: int
    reads_whole_prompts: bool
    """Rows see rows after them: a prompt is computed in one step, and not continued."""
    pooling: PoolingSpec
    """What ``pooled`` gives, and whether there are logits."""
    max_positions: int
    """Longest sequence the configuration allows (``max_position_embeddings``)."""

    @property
    def n_params(self) -> int: ...

    @property
    def n_bytes(self) -> int:
        """Bytes of all parameters, known before they are loaded."""
        ...

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every checkpoint tensor that the model is made of, by name: also what random weights are drawn for."""
        ...

    def zero_centred(self) -> frozenset[str]:
        """Names among them that store w for a factor of 1 + w."""
        ...

    def load(self, checkpoint: Checkpoint, progress: Progress = no_progress, threads: int = 1) -> None:
        """Checks all names and shapes, then allocates and fills the parameters, some rows of a tensor at a time.

        Args:
            progress: called after each tensor with (bytes of parameters filled, ``n_bytes``).
            threads: that read and fill, each another parameter.

        Raises:
            CheckpointError: a tensor is missing, has another shape or a dtype that is not a float, or is one that no
                layer asked for. Names file and tensor. Nothing is allocated before all names and shapes are right.
        """
        ...

    def memory(self) -> list[torch.Tensor]:
        """All bytes of the parameters, in an order that the build alone decides: [n] uint8 each. Allocates what is not
        there yet; what ``load`` fills is what they hold after it."""
        ...

    def layout(self) -> list[tuple[str, ...]]:
        """What ``memory`` means, parameter by parameter: where it comes from, and how it lies there."""
        ...

    def expert_bytes(self) -> tuple[int, float]:
        """Bytes of all experts, and the share of them that one row is sent to; nothing without experts."""
        ...

    def weight_formats(self) -> dict[str, int]:
        """How many checkpoint tensors of products and look-ups are kept in which form: a dtype, or blocks."""
        ...

    def cached_layers(self) -> list[CachedLayer]:
        """Layers that have a cache, in order."""
        ...

    def cache_specs(self) -> list[CacheSpec]:
        """What each of them keeps."""
        ...

    def bind_cache(self, layers: Sequence[Sequence[int]], views: Sequence[torch.Tensor]) -> None:
        """Gives every layer its cache.

        Args:
            layers: for each cache group, the indices into ``cache_specs()`` that are in it.
            views: for each group, [n_blocks, n_layers_of_group, n] over the arena, as ``ops.block_layout`` says. Any
                block stride will do; a layer's share of a block must be dense.

        Raises:
            EngineError: a view does not fit its layers, or a layer is left without a cache.
        """
        ...

    def forward(self, batch: Batch) -> torch.Tensor:
        """[T, hidden], after the final norm. Writes the rows' keys and values into the cache.

        The metadata of every group must be there (``Ops.plan``).
        """
        ...

    def advance(self, plans: Mapping[int, Any]) -> None:
        """Draft rows of the last ``forward`` were right: the states of recurrent layers move on over them.

        ``plans``: for each cache group of states, the plan of those rows (``ops.recurrent.accepted_rows``).
        """
        ...

    def encode(self, item: MediaItem) -> torch.Tensor:
        """[n_states, hidden]: what the encoder of a model that reads media makes of one."""
        ...

    def write_media(self, states: torch.Tensor, plans: dict[int, Any]) -> None:
        """Keys and values of encoded media [n, hidden] into the cache. ``plans``: for each cache group of media, where
        they go."""
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[R, hidden] -> [R, vocab_size] fp32, final cap applied. Only if ``pooling.generates``."""
        ...

    def pooled(self, hidden: torch.Tensor) -> torch.Tensor:
        """[R, hidden] after pooling -> [R, pooling.width] fp32: the hidden states themselves, or what a head makes of
        them."""
        ...


class Decoder(Layer):
    """What every decoder does alike. A model file composes its layers, names them here and says what forward does."""

    reads_whole_prompts = False
    head: LMHead
    score: Layer | None = None
    """What a pooled row goes through, in a model that does not generate."""

    def __init__(self, vocab_size: int, max_positions: int, *, tied: bool) -> None:
        self.vocab_size = vocab_size
        self.max_positions = max_positions
        # Checkpoint tensors that carry nothing: frequencies follow from the configuration, and a tied head's own copy
        # (some exporters write one) is not used by anybody.
        self._ignored = ("rotary_emb.inv_freq", "lm_head.weight") if tied else ("rotary_emb.inv_freq",)
        self._ignored_below: tuple[str, ...] = ()
        self._below: tuple[str, ...] = ("",)
        self._pooling: PoolingSpec | None = None

    def ignore_below(self, *prefixes: str) -> None:
        """Tensors whose names begin so may be in a checkpoint, and are not used."""
        self._ignored_below += prefixes

    def look_below(self, *prefixes: str) -> None:
        """Only tensors whose names begin so belong to this model; others in a checkpoint are another's."""
        self._below = prefixes

    def end_with(self, score: Layer, pooling: PoolingSpec) -> Self:
        """Puts a head for pooled rows, [R, hidden] -> [R, pooling.width] fp32, in the place of the one over the
        vocabulary. For the build, before loading."""
        vars(self).pop("head", None)
        self.score = score
        self._pooling = pooling
        self._ignored = (*self._ignored, "lm_head.weight")
        return self

    @property
    def pooling(self) -> PoolingSpec:
        return self._pooling or PoolingSpec(width=self.head.weight.shape[-1])

    @property
    def n_params(self) -> int:
        return sum(parameter.numel for parameter in self.parameters())

    @property
    def n_bytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.parameters())

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        return tensor_shapes(self.parameters())

    def zero_centred(self) -> frozenset[str]:
        return frozenset(source.name for p in self.parameters() if p.zero_centred for source in p.sources)

    def load(self, checkpoint: Checkpoint, progress: Progress = no_progress, threads: int = 1) -> None:
        parameters: list[Parameter] = list(self.parameters())
        plan = plan_loading(parameters, checkpoint, self._ignored, self._ignored_below, self._below)
        fill_parameters(plan, parameters, checkpoint, progress, threads)

    def memory(self) -> list[torch.Tensor]:
        return [part for parameter in self.parameters() for part in parameter.memory()]

    def layout(self) -> list[tuple[str, ...]]:
        return [parameter.layout() for parameter in self.parameters()]

    def expert_bytes(self) -> tuple[int, float]:
        layers = [layer for layer in self.sublayers() if isinstance(layer, MixtureOfExperts)]
        sizes = [sum(parameter.nbytes for parameter in layer.experts.parameters()) for layer in layers]
        read = sum(size * layer.share for size, layer in zip(sizes, layers, strict=True))
        return sum(sizes), read / sum(sizes) if layers else 0.0

    def weight_formats(self) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for weight in self.parameters():
            if isinstance(weight, Weight):
                dense = str(weight.dtype).removeprefix("torch.")
                counts.update(str(weight.formats.get(source.name, dense)) for source in weight.sources)
        return dict(counts)

    def cached_layers(self) -> list[CachedLayer]:
        return [layer for layer in self.sublayers() if isinstance(layer, CachedLayer)]

    def cache_specs(self) -> list[CacheSpec]:
        return [layer.cache_spec for layer in self.cached_layers()]

    def bind_cache(self, layers: Sequence[Sequence[int]], views: Sequence[torch.Tensor]) -> None:
        cached = self.cached_layers()
        bound: set[int] = set()
        for group, (members, view) in enumerate(zip(layers, views, strict=True)):
            if view.dim() != 3 or view.shape[1] != len(members):
                raise EngineError(f"group {group} has {len(members)} layers, its cache has shape {tuple(view.shape)}")
            for place, layer in enumerate(members):
                cached[layer].bind_cache(group, view[:, place])
                bound.add(layer)
        if len(bound) != len(cached):
            raise EngineError(f"layers without a cache: {sorted(set(range(len(cached))) - bound)}")

    def advance(self, plans: Mapping[int, Any]) -> None:
        for layer in self.sublayers():
            if isinstance(layer, RecurrentMixer):
                layer.advance(plans)

    def encode(self, item: MediaItem) -> torch.Tensor:
        raise EngineError(f"{type(self).__name__} reads no {item.kind}")

    def write_media(self, states: torch.Tensor, plans: dict[int, Any]) -> None:
        for layer in self.sublayers():
            if isinstance(layer, CrossBlock):
                layer.write(states, plans)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.head(hidden)

    def pooled(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.float() if self.score is None else self.score(hidden)
