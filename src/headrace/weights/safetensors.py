"""Folders of safetensors files, sharded or single.

Format: 8 bytes length (little endian), a JSON header of that length, then the data (README of
https://github.com/huggingface/safetensors, "Format"). The header is read here rather than by the library because the
library maps the file, and mapped pages count as resident beside the loaded copy.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from headrace.core.errors import CheckpointError, ModelError

from .files import (
    DataFile,
    Rows,
    as_bytes,
    check_destination,
    fill_by_rows,
    read_json_object,
    read_optional_json,
    slices,
)

_HEADER_LIMIT = 100_000_000
"""The format's own limit on the header, in bytes."""

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where a tensor lies: ``offset`` counts from the start of the file."""

    file: DataFile
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def _has_separate_experts(config: dict[str, Any], names: Iterable[str]) -> bool:
    """Quantised exports of Llama 4 have a tensor for each expert where its own files have one for all, and their
    configurations do not say so."""
    is_llama4 = str(config.get("model_type", "")).startswith("llama4")
    return is_llama4 and any(".feed_forward.experts.0." in name for name in names)


class SafetensorsCheckpoint:
    """A ``Checkpoint`` over a folder with ``config.json`` and one or more ``*.safetensors``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: list[DataFile] = []
        try:
            self._config = read_json_object(_existing(path / "config.json"))
            self._generation = read_optional_json(path / "generation_config.json")
            self._entries = self._read_entries()
            if _has_separate_experts(self._config, self._entries):
                self._config["separate_experts"] = True
        except BaseException:
            self.close()
            raise

    def config(self) -> dict[str, Any]:
        return copy.deepcopy(self._config)

    def generation_config(self) -> dict[str, Any]:
        return copy.deepcopy(self._generation)

    def names(self) -> Sequence[str]:
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        return self._entry(name).dtype

    def tensor(self, name: str) -> torch.Tensor:
        entry = self._entry(name)
        out = torch.empty(entry.shape, dtype=entry.dtype)
        self.read_into(name, out)
        return out

    def read_into(self, name: str, out: torch.Tensor) -> None:
        entry = self._entry(name)
        check_destination(out, entry.shape, entry.file.path, name)
        if out.numel() == 0:
            return
        if out.dtype == entry.dtype:
            entry.file.read_into(as_bytes(out), entry.offset, f"tensor {name!r}")
            return
        if not entry.shape:
            out.copy_(self.tensor(name))
            return
        fill_by_rows(out, self.rows(name))

    def rows(self, name: str) -> Rows:
        entry = self._entry(name)
        n_rows = entry.shape[0]
        return slices(n_rows, entry.nbytes // max(n_rows, 1), partial(self.part, name))

    def part(self, name: str, first: int, last: int) -> torch.Tensor:
        """Rows [first, last) of a tensor of one dimension or more, as stored."""
        entry = self._entry(name)
        row_bytes = entry.nbytes // max(entry.shape[0], 1)
        part = torch.empty((last - first, *entry.shape[1:]), dtype=entry.dtype)
        entry.file.read_into(as_bytes(part), entry.offset + first * row_bytes, f"tensor {name!r}")
        return part

    def file_of(self, name: str) -> Path:
        return self._entry(name).file.path

    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self._entries.values())

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _entry(self, name: str) -> _Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise CheckpointError(f"{self.path}: tensor {name!r} is missing") from None

    def _read_entries(self) -> dict[str, _Entry]:
        index = _index_file(self.path)
        if index is None:
            return _read_header(self._open(_single_file(self.path)))
        return self._read_sharded(index)

    def _read_sharded(self, index: Path) -> dict[str, _Entry]:
        weight_map = read_json_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise CheckpointError(f"{index}: expected 'weight_map', an object from tensor names to file names")
        shards: dict[str, dict[str, _Entry]] = {}
        for name, file_name in weight_map.items():
            if file_name not in shards:
                if Path(file_name).name != file_name or not (self.path / file_name).is_file():
                    raise CheckpointError(
                        f"{index}: tensor {name!r} is said to be in {file_name!r}, which is not there"
                    )
                shards[file_name] = _read_header(self._open(self.path / file_name))
            if name not in shards[file_name]:
                raise CheckpointError(
                    f"{self.path / file_name}: tensor {name!r} is missing, though {index.name} names it"
                )
        # The order of the files, not of the index: one pass over each.
        return {
            name: entry
            for file_name, entries in shards.items()
            for name, entry in entries.items()
            if weight_map.get(name) == file_name
        }

    def _open(self, path: Path) -> DataFile:
        file = DataFile(path)
        self._files.append(file)
        return file


def _existing(config: Path) -> Path:
    if not config.is_file():
        raise ModelError(f"{config.parent}: no config.json; expected the folder of a model in the Hugging Face layout")
    return config


def _index_file(folder: Path) -> Path | None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return index
    others = sorted(folder.glob("*.safetensors.index.json"))
    return others[0] if len(others) == 1 else None


def _single_file(folder: Path) -> Path:
    if (folder / "model.safetensors").is_file():
        return folder / "model.safetensors"
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    if files:
        raise CheckpointError(
            f"{folder}: {len(files)} safetensors files and no model.safetensors.index.json to say which tensor is where"
        )
    others = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
    hint = f" ({others[0]} is a pickle: convert it to safetensors)" if others else ""
    raise CheckpointError(f"{folder}: no *.safetensors file{hint}")


def _read_header(file: DataFile) -> dict[str, _Entry]:
    """The entries of one file, by their offsets; everything that the header claims is checked against the file."""
    if file.size < 8:
        raise CheckpointError(f"{file.path}: {file.size} bytes, too short for a safetensors file")
    length_bytes = bytearray(8)
    file.read_into(length_bytes, 0, "header length")
    length = int.from_bytes(length_bytes, "little")
    if length > min(_HEADER_LIMIT, file.size - 8):
        raise CheckpointError(
            f"{file.path}: header of {length} bytes in a file of {file.size}: damaged or not safetensors"
        )
    raw = bytearray(length)
    file.read_into(raw, 8, "header")
    try:
        header = json.loads(raw, object_pairs_hook=lambda pairs: _unique(pairs, file.path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file.path}: header is not valid JSON: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file.path}: header is not a JSON object")
    header.pop("__metadata__", None)
    data = 8 + length
    entries = [(name, _entry(file, data, name, fields)) for name, fields in header.items()]
    entries.sort(key=lambda item: (item[1].offset, item[1].nbytes))
    _check_cover(file, data, entries)
    return dict(entries)


def _unique(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise CheckpointError(f"{path}: header names a tensor twice")
    return fields


def _entry(file: DataFile, data: int, name: str, fields: Any) -> _Entry:
    where = f"{file.path}: tensor {name!r}"
    if not isinstance(fields, dict) or not fields.keys() >= {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: expected dtype, shape and data_offsets, found {fields!r:.100}")
    dtype = _DTYPES.get(fields["dtype"]) if isinstance(fields["dtype"], str) else None
    if dtype is None:
        raise CheckpointError(f"{where}: dtype {fields['dtype']!r:.40} is not known; known: {', '.join(_DTYPES)}")
    shape, offsets = fields["shape"], fields["data_offsets"]
    if not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{where}: damaged shape {shape!r:.60} or data_offsets {offsets!r:.60}")
    expected = math.prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != expected:
        raise CheckpointError(
            f"{where}: shape {shape} of {fields['dtype']} takes {expected} bytes, "
            f"data_offsets give {offsets[1] - offsets[0]}"
        )
    return _Entry(file, dtype, tuple(shape), data + offsets[0], expected)


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 62 for item in value)


def _check_cover(file: DataFile, data: int, entries: list[tuple[str, _Entry]]) -> None:
    """The tensors must cover the data exactly: no hole, no overlap, no missing end."""
    position = data
    for name, entry in entries:
        if entry.offset != position:
            raise CheckpointError(f"{file.path}: tensor {name!r} starts at byte {entry.offset}, expected {position}")
        position += entry.nbytes
        if position > file.size:
            raise CheckpointError(
                f"{file.path}: tensor {name!r} ends at byte {position}, the file at {file.size}: the file is truncated"
            )
    if position != file.size:
        raise CheckpointError(f"{file.path}: {file.size - position} bytes after the last tensor: damaged")
