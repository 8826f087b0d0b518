"""A GGUF file as a ``Checkpoint``: Hugging Face names, tensors dequantised or in the blocks they are stored in."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headrace.core.errors import CheckpointError
from headrace.quant.formats import BlockFormat, BlockRows

from .files import DataFile, Rows, as_bytes, check_destination, fill_by_rows, slices
from .gguf_blocks import SUPPORTED, block_format, block_rows, dequantise, dequantised_dtype, is_supported
from .gguf_config import hf_config, hf_generation_config
from .gguf_names import Placement, is_weight, place
from .gguf_reader import TensorInfo, read_header


@dataclass(frozen=True, slots=True)
class _Entry:
    info: TensorInfo
    placement: Placement


class GgufCheckpoint:
    """A ``Checkpoint`` over one GGUF file of an architecture in ``gguf_names``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        header = read_header(path)
        self._metadata = header.metadata
        self._file = DataFile(path)
        try:
            self._config = hf_config(header, lambda name: self._vector(header.tensors[name]))
            arch = header.metadata["general.architecture"]
            self._entries = _entries(path, arch, list(header.tensors.values()), self._config)
        except BaseException:
            self.close()
            raise

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The file's metadata as it is; the tokenizer is in here."""
        return self._metadata

    def config(self) -> dict[str, Any]:
        return copy.deepcopy(self._config)

    def generation_config(self) -> dict[str, Any]:
        return hf_generation_config(self._metadata)

    def names(self) -> Sequence[str]:
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).info.shape

    def dtype(self, name: str) -> torch.dtype:
        return dequantised_dtype(self._entry(name).info.type)

    def tensor(self, name: str) -> torch.Tensor:
        out = torch.empty(self.shape(name), dtype=self.dtype(name))
        self.read_into(name, out)
        return out

    def read_into(self, name: str, out: torch.Tensor) -> None:
        check_destination(out, self.shape(name), self.path, name)
        fill_by_rows(out, self.rows(name))

    def rows(self, name: str) -> Rows:
        entry = self._entry(name)
        info, placement = entry.info, entry.placement
        # A vector has no rows to cut into: blocks may span what would be its rows.
        if len(info.shape) == 1:
            return iter([(0, placement.undo(dequantise(self._raw(info, 0, info.nbytes), info.type)))])
        row_bytes = info.nbytes // info.shape[0]

        def read(first: int, last: int) -> torch.Tensor:
            raw = self._raw(info, first * row_bytes, last * row_bytes)
            return placement.undo(dequantise(raw, info.type).view(last - first, *info.shape[1:]))

        return slices(info.shape[0], row_bytes, read, multiple=placement.rows)

    def block_format(self, name: str) -> BlockFormat | None:
        """How the blocks of a matrix are kept without loss; None for what is not stored in blocks."""
        info = self._entry(name).info
        return block_format(info.type) if len(info.shape) == 2 else None

    def block_rows(self, name: str) -> Iterator[tuple[int, BlockRows]]:
        """As ``rows``, in the format of ``block_format``."""
        entry = self._entry(name)
        info, placement = entry.info, entry.placement
        row_bytes = info.nbytes // info.shape[0]

        def read(first: int, last: int) -> BlockRows:
            raw = self._raw(info, first * row_bytes, last * row_bytes)
            return block_rows(raw, info.type, last - first).map(placement.undo)

        return slices(info.shape[0], row_bytes, read, multiple=placement.rows)

    def file_of(self, name: str) -> Path:
        self._entry(name)
        return self.path

    def nbytes(self) -> int:
        return sum(entry.info.nbytes for entry in self._entries.values())

    def close(self) -> None:
        self._file.close()

    def _entry(self, name: str) -> _Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise CheckpointError(f"{self.path}: tensor {name!r} is missing") from None

    def _raw(self, info: TensorInfo, first: int, last: int) -> torch.Tensor:
        raw = torch.empty(last - first, dtype=torch.uint8)
        self._file.read_into(as_bytes(raw), info.offset + first, f"tensor {info.name!r}")
        return raw

    def _vector(self, info: TensorInfo) -> np.ndarray:
        _check_type(self.path, info)
        return dequantise(self._raw(info, 0, info.nbytes), info.type).float().numpy()


def _entries(path: Path, arch: str, infos: list[TensorInfo], config: dict[str, Any]) -> dict[str, _Entry]:
    entries = {}
    for info in infos:
        if not is_weight(info.name):
            continue
        _check_type(path, info)
        placement = place(path, arch, info.name, config)
        if info.shape[0] % placement.rows:
            raise CheckpointError(
                f"{path}: tensor {info.name!r}: expected a multiple of {placement.rows} rows (the head width), "
                f"found shape {list(info.shape)}"
            )
        entries |= (
            _experts(info, placement) if "{expert}" in placement.name else {placement.name: _Entry(info, placement)}
        )
    return entries


def _experts(info: TensorInfo, placement: Placement) -> dict[str, _Entry]:
    """The matrices that lie one behind another in one tensor."""
    n_bytes = info.nbytes // info.shape[0]
    parts = {}
    for expert in range(info.shape[0]):
        part = replace(info, shape=info.shape[1:], offset=info.offset + expert * n_bytes, nbytes=n_bytes)
        name = placement.name.format(expert=expert)
        parts[name] = _Entry(part, replace(placement, name=name))
    return parts


def _check_type(path: Path, info: TensorInfo) -> None:
    if not is_supported(info.type):
        raise CheckpointError(
            f"{path}: tensor {info.name!r} is stored as {info.type.name}; supported: {', '.join(SUPPORTED)}. "
            "Convert the file to one of these, or use the original safetensors."
        )
