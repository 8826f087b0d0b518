"""FP8 weights with a scale for each block of values (DeepSeek-V3, Qwen3-FP8), dequantised while they are read."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from headrace.core.errors import CheckpointError, ModelError

from .checkpoint import Checkpoint
from .files import Rows, check_destination, fill_by_rows

log = logging.getLogger("headrace")

_SCALE = "_scale_inv"
"""The name says inverse, but it is what a value is multiplied with."""


def is_fp8_blocks(config: Mapping[str, Any]) -> bool:
    """Whether ``quantization_config`` asks for this form."""
    quantised = config.get("quantization_config")
    return (
        isinstance(quantised, Mapping)
        and quantised.get("quant_method") == "fp8"
        and quantised.get("weight_block_size") is not None
    )


class Fp8BlockCheckpoint:
    """A ``Checkpoint`` over one in FP8: ``P.weight`` in e4m3 [n, k] times its scales, float32.

    ``P.weight_scale_inv`` [ceil(n / a), ceil(k / b)] holds a factor for each block of a x b values; the last ones may
    be narrower. Tensors without scales are given as they are stored.
    """

    def __init__(self, stored: Checkpoint) -> None:
        self.path = stored.path
        self._stored = stored
        self._block = _block_size(stored.config()["quantization_config"], stored.path)
        log.warning("%s: FP8 weights are dequantised while they are read, and computed with in dtype", stored.path)
        names = stored.names()
        present = set(names)
        self._names = [name for name in names if not name.endswith(_SCALE)]
        self._scaled = {name for name in self._names if f"{name}{_SCALE}" in present}
        for name in self._names:
            self._check(name)

    def config(self) -> dict[str, Any]:
        """Without ``quantization_config``: what ``rows`` gives is not quantised."""
        return {name: value for name, value in self._stored.config().items() if name != "quantization_config"}

    def generation_config(self) -> dict[str, Any]:
        return self._stored.generation_config()

    def names(self) -> Sequence[str]:
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return torch.float32 if name in self._scaled else self._stored.dtype(name)

    def tensor(self, name: str) -> torch.Tensor:
        out = torch.empty(self.shape(name), dtype=self.dtype(name))
        self.read_into(name, out)
        return out

    def read_into(self, name: str, out: torch.Tensor) -> None:
        if name not in self._scaled:
            self._stored.read_into(name, out)
            return
        check_destination(out, self.shape(name), self.path, name)
        fill_by_rows(out, self.rows(name))

    def rows(self, name: str) -> Rows:
        return self._scaled_rows(name) if name in self._scaled else self._stored.rows(name)

    def file_of(self, name: str) -> Path:
        return self._stored.file_of(name)

    def nbytes(self) -> int:
        return self._stored.nbytes()

    def close(self) -> None:
        self._stored.close()

    def _scaled_rows(self, name: str) -> Rows:
        height, width = self._block
        scales = self._stored.tensor(f"{name}{_SCALE}").float()
        columns = torch.arange(self.shape(name)[1]) // width
        for first, part in self._stored.rows(name):
            bands = torch.arange(first, first + len(part)) // height
            yield first, part.float() * scales[bands[:, None], columns]

    def _check(self, name: str) -> None:
        """Raises CheckpointError for FP8 without scales, and for scales of another shape."""
        is_fp8, shape = self._stored.dtype(name) == torch.float8_e4m3fn, self.shape(name)
        where = f"{self.file_of(name)}: tensor {name!r}"
        if is_fp8 != (name in self._scaled):
            raise CheckpointError(
                f"{where} is {self._stored.dtype(name)} and {'has no' if is_fp8 else 'has'} {_SCALE.removeprefix('_')};"
                " a tensor in float8_e4m3fn has one, and no other"
            )
        if is_fp8:
            found = self._stored.shape(f"{name}{_SCALE}")
            wanted = tuple(-(-size // block) for size, block in zip(shape, self._block, strict=True))
            if found != wanted:
                raise CheckpointError(
                    f"{where} of {list(shape)} in blocks of {list(self._block)} has scales of {list(found)},"
                    f" expected {list(wanted)}"
                )


def _block_size(quantised: Mapping[str, Any], path: Path) -> tuple[int, int]:
    size, form = quantised["weight_block_size"], quantised.get("fmt", "e4m3")
    if form != "e4m3":
        raise ModelError(f"{path}: quantization_config.fmt must be 'e4m3', got {form!r}")
    if not isinstance(size, list) or len(size) != 2 or not all(type(n) is int and n > 0 for n in size):
        raise ModelError(f"{path}: quantization_config.weight_block_size must be two sizes, got {size!r}")
    return size[0], size[1]
