"""Layers of equal memory form a group: one block table serves them all, and one block holds 32 tokens of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .specs import CacheSpec


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """The layers of equal spec. ``layers`` are indices into the model's layers, rising."""

    index: int
    spec: CacheSpec
    layers: tuple[int, ...]

    @property
    def block_bytes(self) -> int:
        """Bytes of a block: the share of all layers of the group."""
        return self.spec.bytes_per_block * len(self.layers)


def group_layers(specs: Sequence[CacheSpec]) -> tuple[CacheGroup, ...]:
    """Groups in the order in which their specs first appear, those of tokens first; none for a model that keeps no
    past."""
    layers: dict[CacheSpec, list[int]] = {}
    for layer, spec in enumerate(specs):
        layers.setdefault(spec, []).append(layer)
    ordered = sorted(layers.items(), key=lambda item: not item[0].of_tokens)
    return tuple(CacheGroup(index, spec, tuple(of)) for index, (spec, of) in enumerate(ordered))
