"""Checkpoints that are made rather than found: random weights, and writing tensors in the hub layout."""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from headrace.core.errors import CheckpointError

from .files import Rows, check_destination, fill_by_rows, slices
from .shards import write_shards

_NOISE = 0.1
"""Standard deviation of norm weights and biases: large enough that a forgotten one shows."""


class DummyCheckpoint:
    """Random weights, a function of (seed, tensor name, shape) alone: what ``load_format="dummy"`` loads.

    Matrices are drawn with standard deviation fan_in^-0.5, so that activations keep their size; norm weights around 1;
    biases around 0. ``zero_centred`` names the norms that are stored as w for a factor of 1 + w.
    """

    path = Path("<dummy weights>")

    def __init__(
        self,
        config: Mapping[str, Any],
        shapes: Mapping[str, Sequence[int]],
        *,
        seed: int,
        dtype: torch.dtype = torch.bfloat16,
        zero_centred: Collection[str] = (),
    ) -> None:
        unknown = sorted(set(zero_centred) - shapes.keys())
        if unknown:
            raise ValueError(f"zero_centred names tensors that are not in shapes: {', '.join(unknown)}")
        self._config = dict(config)
        self._shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self._seed = seed
        self._dtype = dtype
        self._zero_centred = frozenset(zero_centred)

    def config(self) -> dict[str, Any]:
        return copy.deepcopy(self._config)

    def generation_config(self) -> dict[str, Any]:
        return {}

    def names(self) -> Sequence[str]:
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        try:
            return self._shapes[name]
        except KeyError:
            raise CheckpointError(f"{self.path}: tensor {name!r} is missing") from None

    def dtype(self, name: str) -> torch.dtype:
        self.shape(name)
        return self._dtype

    def tensor(self, name: str) -> torch.Tensor:
        out = torch.empty(self.shape(name), dtype=self._dtype)
        self.read_into(name, out)
        return out

    def read_into(self, name: str, out: torch.Tensor) -> None:
        check_destination(out, self.shape(name), self.path, name)
        fill_by_rows(out, self.rows(name))

    def rows(self, name: str) -> Rows:
        shape = self.shape(name)
        # torch's CPU generator looks at the low 32 bits of its seed only.
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self._seed} {name}".encode()))
        mean, std = self._moments(name, shape)
        width = torch.Size(shape[1:]).numel()

        def draw(first: int, last: int) -> torch.Tensor:
            values = torch.empty((last - first, *shape[1:]), dtype=torch.float32)
            # Rounded to the dtype of the checkpoint, so that a float32 copy of it holds the same numbers.
            return values.normal_(mean, std, generator=generator).to(self._dtype)

        return slices(shape[0], width * 4, draw)

    def file_of(self, name: str) -> Path:
        self.shape(name)
        return self.path

    def nbytes(self) -> int:
        return sum(torch.Size(shape).numel() for shape in self._shapes.values()) * self._dtype.itemsize

    def close(self) -> None:
        """Nothing is open."""

    def _moments(self, name: str, shape: tuple[int, ...]) -> tuple[float, float]:
        if len(shape) < 2:
            is_norm = name.endswith("norm.weight") and name not in self._zero_centred
            return (1.0 if is_norm else 0.0), _NOISE
        return 0.0, shape[-1] ** -0.5


def write_safetensors(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], shard_bytes: int | None = None
) -> Path:
    """Write a checkpoint in the hub layout; with ``shard_bytes``, in files of that size at most, or of one tensor."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config), indent=2))
    write_shards(folder, tensors.items(), shard_bytes)
    return folder
