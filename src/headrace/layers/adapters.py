"""Adapters of a model's linear maps (LoRA): which maps take them, what each adds, and which rows go with which."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from headrace.core.errors import CheckpointError, ConfigError, did_you_mean
from headrace.ops.low_rank import LowRankOps, LowRankPart
from headrace.weights.peft import ModuleDelta, PeftAdapter

Adapted = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""x [T, n_in] and the map's outputs y [T, n_out] -> y with what the rows' adapters give."""

NO_ADAPTER = -1
"""Number of the adapter of a row that has none."""


def _as_it_is(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y


class NoAdapters:
    """Of a model whose requests bring none."""

    modules: tuple[str, ...] = ()

    def nbytes(self, itemsize: int) -> int:
        return 0

    def check_targets(self) -> None:
        pass

    def of_map(
        self,
        names: tuple[str, ...],
        n_in: int,
        n_outs: tuple[int, ...],
        orders: tuple[tuple[int, ...], ...] | None,
        dtype: torch.dtype,
    ) -> Adapted:
        return _as_it_is


NO_ADAPTERS = NoAdapters()


@dataclass(frozen=True, slots=True, eq=False)
class _Module:
    """A module of the checkpoint, as a part of a map."""

    map: _Map
    n_out: int
    first: int
    """Of its outputs among the map's."""
    order: tuple[int, ...] | None


class _Map:
    """A linear map that takes adapters."""

    def __init__(self, ops: LowRankOps, rows: torch.Tensor, n_adapters: int, n_in: int, n_out: int, dtype: Any) -> None:
        self.n_in, self.n_out = n_in, n_out
        self.table = ops.table(n_adapters, n_in, n_out, dtype)
        self._add = ops.add
        self._rows = rows

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self._add(x, y, self._rows, self.table)
        return y


class Adapters:
    """All that belongs to one model. Adapters have numbers from 0 to ``n_adapters`` - 1.

    Args:
        targets: last parts of the names of modules that may be changed; empty: all.
        max_rank: largest rank of an adapter.
        max_rows: rows of a step at most.
    """

    def __init__(
        self, ops: LowRankOps, n_adapters: int, max_rows: int, *, max_rank: int, targets: tuple[str, ...] = ()
    ) -> None:
        self._ops = ops
        self._n_adapters = n_adapters
        self._targets = targets
        self.max_rank = max_rank
        self.rows = torch.full((max_rows,), NO_ADAPTER, dtype=torch.int32)
        """[max_rows]: the adapter of each row of the step. A recorded step reads it where it is."""
        self._modules: dict[str, _Module] = {}
        self._tails: dict[str, list[str]] = {}
        """Names from the number of their layer on -> whole names."""
        self._offered: set[str] = set()

    def of_map(
        self,
        names: tuple[str, ...],
        n_in: int,
        n_outs: tuple[int, ...],
        orders: tuple[tuple[int, ...], ...] | None,
        dtype: torch.dtype,
    ) -> Adapted:
        """For a ``Linear`` of these arguments: what it calls with its inputs and outputs."""
        self._offered.update(name.rpartition(".")[2] for name in names)
        if not any(self._may_change(name) for name in names):
            return _as_it_is
        adapted = _Map(self._ops, self.rows, self._n_adapters, n_in, sum(n_outs), dtype)
        first = 0
        for name, n_out, order in zip(names, n_outs, orders or (None,) * len(names), strict=True):
            if self._may_change(name):
                self._modules[name] = _Module(adapted, n_out, first, order)
                self._tails.setdefault(_in_its_layer(name), []).append(name)
            first += n_out
        return adapted

    def nbytes(self, itemsize: int) -> int:
        """Of all adapters, if each had the largest rank in every module."""
        each = sum(module.map.n_in + module.n_out for module in self._modules.values())
        return self._n_adapters * self.max_rank * each * itemsize

    @property
    def modules(self) -> tuple[str, ...]:
        """Last parts of the names of all modules that take adapters."""
        return tuple(sorted({name.rpartition(".")[2] for name in self._modules}))

    def check_targets(self) -> None:
        """Raises ``ConfigError`` for a target that is no module of the model. Called once that is built."""
        for name in self._targets:
            if name not in self._offered:
                raise ConfigError(
                    f"LoraConfig.lora_target_modules has {name!r}; modules of this model that take adapters are"
                    f" {', '.join(sorted(self._offered)) or 'none'}.{did_you_mean(name, self._offered)}"
                )

    def load(self, number: int, adapter: PeftAdapter) -> None:
        """Puts an adapter to its place. Raises ``CheckpointError`` if it does not fit; then nothing is there."""
        parts: dict[_Map, list[LowRankPart]] = {}
        seen: dict[_Module, str] = {}
        for name, delta in adapter.modules.items():
            module = self._module(name, adapter)
            self._check(name, delta, module, adapter)
            if (other := seen.setdefault(module, name)) != name:
                raise CheckpointError(f"{adapter.path}: {other} and {name} are the same module of the model")
            b = delta.b if module.order is None else _reordered(delta.b, module.order)
            parts.setdefault(module.map, []).append(LowRankPart(delta.a, b, module.first, delta.scale))
        for map_, its_parts in parts.items():
            self._ops.put(map_.table, number, its_parts)

    def unload(self, number: int) -> None:
        for map_ in {module.map for module in self._modules.values()}:
            self._ops.clear(map_.table, number)

    def _may_change(self, name: str) -> bool:
        return not self._targets or name.rpartition(".")[2] in self._targets

    def _module(self, name: str, adapter: PeftAdapter) -> _Module:
        known = [name] if name in self._modules else self._tails.get(_in_its_layer(name), [])
        if len(known) == 1:
            return self._modules[known[0]]
        last = name.rpartition(".")[2]
        if self._targets and last not in self._targets:
            raise CheckpointError(
                f"{adapter.path} changes {name}, and LoraConfig.lora_target_modules has {', '.join(self._targets)}; add"
                f" {last!r} to it, or leave it out"
            )
        raise CheckpointError(
            f"{adapter.path} changes {name}, which takes no adapter here; those that do are"
            f" {', '.join(self.modules) or 'none'} of the model's layers.{did_you_mean(name, self._modules)} Merge the"
            " adapter into the model and serve that"
        )

    def _check(self, name: str, delta: ModuleDelta, module: _Module, adapter: PeftAdapter) -> None:
        if delta.a.shape[1] != module.map.n_in or delta.b.shape[0] != module.n_out:
            raise CheckpointError(
                f"{adapter.path}: {name} has lora_A {list(delta.a.shape)} and lora_B {list(delta.b.shape)}; the model's"
                f" module goes from {module.map.n_in} to {module.n_out} values: the adapter is of another model"
            )
        if delta.rank > self.max_rank:
            raise CheckpointError(
                f"{adapter.path}: {name} has rank {delta.rank}; set LoraConfig.max_lora_rank (now {self.max_rank}) to"
                " at least that"
            )


def _in_its_layer(name: str) -> str:
    """The name from the number of its layer on: what stands before differs between checkpoints and libraries."""
    found = re.search(r"(?:^|\.)(?:layers|layer|h|blocks)\.(\d+\..+)$", name)
    return name if found is None else found[1]


def _reordered(b: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """Row i to place ``order[i]``."""
    to = torch.empty_like(b)
    to[torch.tensor(order)] = b
    return to
