"""What every layer is: a tree of parts, whose parameters know the checkpoint tensors that fill them.

Not torch's Module: a parameter here is filled from named sources (several for a fused one), exists without memory until
it is loaded, and is never trained, moved or hooked. A call costs a Python call and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch

from headrace.cache.specs import CacheSpec
from headrace.ops.storage import PLAIN, Storage
from headrace.ops.table import Ops
from headrace.quant.formats import BlockFormat, BlockRows
from headrace.quant.schemes import NO_SCHEME, Scheme
from headrace.weights.checkpoint import Checkpoint

from .adapters import NO_ADAPTERS, Adapters, NoAdapters


@dataclass(frozen=True, slots=True)
class BuildContext:
    """What a build decided, handed to every layer's constructor."""

    ops: Ops
    dtype: torch.dtype = torch.float32
    """Of parameters and activations."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    max_seq_len: int | None = None
    """Longest sequence of the engine; None: the model's own limit. Fixes the frequencies of dynamic rope."""
    kv_dtype: torch.dtype | None = None
    """Of cached keys and values; None: ``dtype``."""
    max_draft_rows: int = 0
    """Draft rows of one step at most."""
    scheme: Scheme = NO_SCHEME
    """Which weights are in blocks."""
    adapters: Adapters | NoAdapters = NO_ADAPTERS
    """What requests bring along to be added to linear maps."""

    @property
    def cache_dtype(self) -> torch.dtype:
        return self.kv_dtype or self.dtype


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint tensor, and the rows (first dimension) of a parameter that it fills."""

    name: str
    shape: tuple[int, ...]
    first: int
    last: int
    order: tuple[int, ...] | None = None
    """Row i of the tensor fills row ``first + order[i]``; None: they fill their rows in order."""

    turn: Callable[[torch.Tensor], torch.Tensor] | None = None
    """Makes rows of the parameter out of slices of the tensor along its first dimension, as many of each; None: a slice
    is a row."""

    def read(self, checkpoint: Checkpoint) -> Iterator[tuple[int, torch.Tensor]]:
        """Rows of the parameter, as they come: (how many came before, rows)."""
        if self.turn is None:
            yield from checkpoint.rows(self.name)
            return
        height = (self.last - self.first) // self.shape[0]
        for first, slices in checkpoint.rows(self.name):
            yield first * height, self.turn(slices)

    def read_blocks(self, checkpoint: Any) -> Iterator[tuple[int, BlockRows]]:
        """As ``read``, of a tensor that is stored in blocks and is turned."""
        assert self.turn is not None
        height = (self.last - self.first) // self.shape[0]
        for first, slices in checkpoint.block_rows(self.name):
            yield first * height, slices.map(self.turn)

    def runs(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Rows [start, stop) of the tensor, in stretches that stay together: (from, to, row of the parameter)."""
        if self.order is None:
            yield start, stop, self.first + start
            return
        while start < stop:
            end = start + 1
            while end < stop and self.order[end] == self.order[end - 1] + 1:
                end += 1
            yield start, end, self.first + self.order[start]
            start = end


class Parameter:
    """A parameter of a layer. ``data`` is None until ``allocate``, then what the storage made: a tensor where that is
    plain, opaque to layers otherwise."""

    __slots__ = ("data", "device", "dtype", "shape", "sources", "storage", "zero_centred")

    def __init__(
        self,
        ctx: BuildContext,
        shape: tuple[int, ...],
        sources: tuple[Source, ...],
        *,
        storage: Storage = PLAIN,
        zero_centred: bool = False,
    ) -> None:
        self.data: Any = None
        self.shape = shape
        self.dtype = ctx.dtype
        self.device = ctx.device
        self.storage = storage
        self.sources = sources
        """Together they fill every row once."""
        self.zero_centred = zero_centred
        """The checkpoint stores w, the layer computes with 1 + w."""

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        """Of memory, allocated or not."""
        return self.storage.nbytes(self.shape, self.dtype)

    def allocate(self) -> None:
        if self.data is None:
            self.data = self.storage.empty(self.shape, self.dtype, self.device)

    def layout(self) -> tuple[str, ...]:
        """What its bytes are, in words: equal words, equal meaning."""
        places = (f"{source.name} {source.first} {source.last}" for source in self.sources)
        return type(self.storage).__name__, str(self.dtype), str(self.shape), str(self.nbytes), *places

    def memory(self) -> list[torch.Tensor]:
        """All its bytes, allocated if need be: [n] uint8."""
        self.allocate()
        return self.storage.memory(self.data)

    def fill(self, source: Source, checkpoint: Checkpoint) -> None:
        """Reads ``source`` into its rows; a source of lower rank fills each of its rows with the same values."""
        if len(source.shape) < len(self.shape):
            same = checkpoint.tensor(source.name).expand(source.last - source.first, *source.shape)
            self.storage.fill(self.data, source.first, same)
            return
        for first, rows in source.read(checkpoint):
            for start, stop, row in source.runs(first, first + len(rows)):
                self.storage.fill(self.data, row, rows[start - first : stop - first])


def stacked(
    names: tuple[str, ...],
    heights: tuple[int, ...],
    *width: int,
    orders: tuple[tuple[int, ...], ...] | None = None,
) -> tuple[Source, ...]:
    """Sources that lie on top of one another: tensor i has ``heights[i]`` rows, in the order ``orders[i]``."""
    sources, first = [], 0
    for name, height, order in zip(names, heights, orders or (None,) * len(names), strict=True):
        sources.append(Source(name, (height, *width), first, first + height, order))
        first += height
    return tuple(sources)


class Weight(Parameter):
    """The weight [n_out, n_in] of products and look-ups, dense or in blocks, and the operators that read it.

    Args:
        is_table: an embedding or a head.
        n_experts: it is the weights of so many experts, one below another; their products are one operator, so that
            they are in blocks of one format, or dense. None: it is one weight.
    """

    __slots__ = ("_scheme", "formats", "ops")

    def __init__(
        self,
        ctx: BuildContext,
        shape: tuple[int, int],
        sources: tuple[Source, ...],
        *,
        is_table: bool = False,
        n_experts: int | None = None,
    ) -> None:
        found = [ctx.scheme.format(source.name, is_table=is_table) for source in sources]
        formats = [form for form in found if form is not None]
        # A mixture of blocks and floats is rare enough to be all floats.
        parts = _parts(sources, formats) if len(formats) == len(found) else ()
        in_blocks = len(parts) == 1 if n_experts is not None else len(parts) > 0
        self._scheme = ctx.scheme
        self.formats = {s.name: form for s, form in zip(sources, formats, strict=True)} if in_blocks else {}
        """Checkpoint tensor -> its format in blocks. Empty for a dense weight."""
        self.ops: Any = self._operators(ctx, parts if in_blocks else (), n_experts)
        """Of one weight ``LinearOps``, of experts their ``Storage``."""
        super().__init__(ctx, shape, sources, storage=self.ops)

    @staticmethod
    def _operators(ctx: BuildContext, parts: tuple[tuple[int, BlockFormat], ...], n_experts: int | None) -> Storage:
        if n_experts is not None:
            return ctx.ops.experts.storage(n_experts, parts[0][1] if parts else None)
        return ctx.ops.block_linear(parts) if parts else ctx.ops.linear

    def layout(self) -> tuple[str, ...]:
        return *super().layout(), *map(repr, self.formats.values())

    def fill(self, source: Source, checkpoint: Checkpoint) -> None:
        if not self.formats:
            return super().fill(source, checkpoint)
        read: Any = checkpoint if source.turn is None else _Turned(source, checkpoint)
        for first, rows in self._scheme.rows(read, source.name, self.formats[source.name]):
            for start, stop, row in source.runs(first, first + len(rows)):
                self.storage.fill(self.data, row, rows[start - first : stop - first])
        return None


class _Turned:
    """A checkpoint's tensor as rows of the parameter that it fills."""

    def __init__(self, source: Source, checkpoint: Checkpoint) -> None:
        self._source, self._checkpoint = source, checkpoint

    def rows(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        yield from self._source.read(self._checkpoint)

    def block_rows(self, name: str) -> Iterator[tuple[int, BlockRows]]:
        yield from self._source.read_blocks(self._checkpoint)


def _parts(sources: tuple[Source, ...], formats: list[BlockFormat]) -> tuple[tuple[int, BlockFormat], ...]:
    """(rows, format), neighbours of one format together."""
    runs = groupby(zip(sources, formats, strict=True), key=lambda pair: pair[1])
    return tuple((sum(source.last - source.first for source, _ in run), form) for form, run in runs)


class Layer:
    """A part of a model. Parameters and sub-layers are its attributes, alone or in a tuple."""

    def sublayers(self) -> Iterator[Layer]:
        """This layer and all below it, in order of construction."""
        yield self
        for part in self._parts():
            if isinstance(part, Layer):
                yield from part.sublayers()

    def parameters(self) -> Iterator[Parameter]:
        """Every parameter of the tree once, in order of construction (a tied one is met twice and given once)."""
        seen: set[int] = set()
        for layer in self.sublayers():
            for part in layer._parts():
                if isinstance(part, Parameter) and id(part) not in seen:
                    seen.add(id(part))
                    yield part

    def _parts(self) -> Iterator[Any]:
        for value in vars(self).values():
            yield from value if isinstance(value, tuple) else (value,)


class CachedLayer(Layer):
    """A part that keeps something of the past, in blocks of its cache group. It reads its group's metadata; a model
    never sees that."""

    cache_spec: CacheSpec

    def bind_cache(self, group: int, cache: torch.Tensor) -> None:
        """``cache``: the layer's share of every block, a view of the arena. Called once the parameters are there.

        Raises EngineError when it is of another kind.
        """
        raise NotImplementedError
