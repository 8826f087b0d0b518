"""The header of a GGUF file: metadata and the tensor directory. No torch.

Format: docs/gguf.md of the ggml project (https://github.com/ggml-org/ggml), versions 2 and 3, little endian. Every
length, count and offset is checked against the file before it is used, so that a damaged file gives
``CheckpointError`` and nothing else.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from headrace.core.errors import CheckpointError

from .gguf_metadata import Metadata, StringArray

_ARRAY_DEPTH = 4
_MAX_DIMS = 4
_STRING, _ARRAY, _BOOL = 8, 9, 7

# Metadata value types by their number.
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_U32, _U64 = _SCALARS[4], _SCALARS[10]


class GgmlType(NamedTuple):
    """A storage form: ``block`` elements of a row take ``nbytes`` bytes."""

    name: str
    block: int
    nbytes: int


GGML_TYPES = {
    0: GgmlType("F32", 1, 4),
    1: GgmlType("F16", 1, 2),
    2: GgmlType("Q4_0", 32, 18),
    3: GgmlType("Q4_1", 32, 20),
    6: GgmlType("Q5_0", 32, 22),
    7: GgmlType("Q5_1", 32, 24),
    8: GgmlType("Q8_0", 32, 34),
    9: GgmlType("Q8_1", 32, 36),
    10: GgmlType("Q2_K", 256, 84),
    11: GgmlType("Q3_K", 256, 110),
    12: GgmlType("Q4_K", 256, 144),
    13: GgmlType("Q5_K", 256, 176),
    14: GgmlType("Q6_K", 256, 210),
    15: GgmlType("Q8_K", 256, 292),
    16: GgmlType("IQ2_XXS", 256, 66),
    17: GgmlType("IQ2_XS", 256, 74),
    18: GgmlType("IQ3_XXS", 256, 98),
    19: GgmlType("IQ1_S", 256, 50),
    20: GgmlType("IQ4_NL", 32, 18),
    21: GgmlType("IQ3_S", 256, 110),
    22: GgmlType("IQ2_S", 256, 82),
    23: GgmlType("IQ4_XS", 256, 136),
    24: GgmlType("I8", 1, 1),
    25: GgmlType("I16", 1, 2),
    26: GgmlType("I32", 1, 4),
    27: GgmlType("I64", 1, 8),
    28: GgmlType("F64", 1, 8),
    29: GgmlType("IQ1_M", 256, 56),
    30: GgmlType("BF16", 1, 2),
    34: GgmlType("TQ1_0", 256, 54),
    35: GgmlType("TQ2_0", 256, 66),
    39: GgmlType("MXFP4", 32, 17),
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One entry of the tensor directory."""

    name: str
    shape: tuple[int, ...]
    """Outermost dimension first, as torch writes it (the file has it the other way round)."""
    type: GgmlType
    offset: int
    """From the start of the file, in bytes."""
    nbytes: int
    part: int = 0
    """Which file of a model that is in several."""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What stands before the weights."""

    path: Path
    version: int
    metadata: Metadata
    tensors: dict[str, TensorInfo]
    """By name, in the order of their offsets."""


def read_header(path: Path) -> GgufHeader:
    """Read metadata and tensor directory. Raises ``CheckpointError`` if the file is damaged or not GGUF."""
    try:
        with path.open("rb") as file:
            # The whole file is mapped, but only the header's pages are touched, and the map ends with this function.
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be opened: {error}") from error
    with data:
        cursor = _Cursor(data, path)
        version, n_tensors, n_fields = _read_counts(cursor)
        values: dict[str, Any] = {}
        for _ in range(n_fields):
            key = cursor.string("metadata key")
            if key in values:
                raise CheckpointError(f"{path}: metadata key {key!r} is there twice")
            values[key] = cursor.value(cursor.scalar(_U32, key), key)
        metadata = Metadata(path, values)
        infos = [_read_info(cursor) for _ in range(n_tensors)]
        tensors = _place(path, metadata, infos, cursor.position, len(data))
    return GgufHeader(path, version, metadata, tensors)


class _Cursor:
    """Reads forward through the header; any read past the end of the file is an error that says what was read."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data = data
        self.path = path
        self.position = 0

    def claim(self, size: int, what: str) -> int:
        """Position of the next ``size`` bytes."""
        start = self.position
        if size > len(self.data) - start:
            raise CheckpointError(
                f"{self.path}: {what}: expected {size} bytes at offset {start}, the file has {len(self.data)}: "
                "truncated or damaged"
            )
        self.position = start + size
        return start

    def scalar(self, form: struct.Struct, what: str) -> Any:
        return form.unpack_from(self.data, self.claim(form.size, what))[0]

    def string(self, what: str) -> str:
        length = self.scalar(_U64, what)
        start = self.claim(length, what)
        try:
            return str(self.data[start : start + length], "utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.path}: {what}: not UTF-8: {error}") from error

    def value(self, kind: int, key: str, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.string(key)
        if kind == _ARRAY:
            return self._array(key, depth)
        return self.scalar(self._form(kind, key), key)

    def _form(self, kind: int, key: str) -> struct.Struct:
        form = _SCALARS.get(kind)
        if form is None:
            raise CheckpointError(f"{self.path}: metadata {key!r} has unknown type {kind}: damaged, or a newer format")
        return form

    def _array(self, key: str, depth: int) -> Any:
        kind = self.scalar(_U32, key)
        count = self.scalar(_U64, key)
        if kind == _STRING:
            strings = self._strings(count, key)
            return strings if depth == 0 else strings.decode(self.path, key)
        if kind == _ARRAY:
            if depth == _ARRAY_DEPTH or count > len(self.data):
                raise CheckpointError(f"{self.path}: metadata {key!r}: arrays nested too deeply: damaged")
            return [self.value(_ARRAY, key, depth + 1) for _ in range(count)]
        form = self._form(kind, key)
        start = self.claim(count * form.size, key)
        dtype = np.dtype(bool) if kind == _BOOL else np.dtype(form.format)
        return np.frombuffer(self.data[start : self.position], dtype)

    def _strings(self, count: int, key: str) -> StringArray:
        if count * _U64.size > len(self.data) - self.position:
            raise CheckpointError(f"{self.path}: metadata {key!r}: {count} strings do not fit the file: damaged")
        first = position = self.position
        ends: list[int] = []
        unpack = _U64.unpack_from
        with memoryview(self.data) as data:
            try:
                for _ in range(count):
                    position += 8 + unpack(data, position)[0]
                    ends.append(position - first)
            except (struct.error, OverflowError) as error:
                raise CheckpointError(f"{self.path}: metadata {key!r}: string {len(ends)}: {error}: damaged") from error
        self.claim(position - first, key)
        return StringArray(self.data[first:position], ends)


def _read_counts(cursor: _Cursor) -> tuple[int, int, int]:
    """Version, number of tensors, number of metadata fields."""
    magic = cursor.claim(4, "magic")
    if cursor.data[magic : magic + 4] != b"GGUF":
        raise CheckpointError(f"{cursor.path}: does not begin with 'GGUF': not a GGUF file, or damaged")
    version = cursor.scalar(_U32, "version")
    if version not in (2, 3):
        hint = " (big endian is not supported)" if version in (2 << 24, 3 << 24) else ""
        raise CheckpointError(f"{cursor.path}: GGUF version {version}{hint}; supported: 2 and 3")
    n_tensors = cursor.scalar(_U64, "tensor count")
    n_fields = cursor.scalar(_U64, "metadata count")
    # The least that an entry takes: 24 bytes for a tensor, 13 for a field.
    if n_tensors * 24 + n_fields * 13 > len(cursor.data):
        raise CheckpointError(f"{cursor.path}: {n_tensors} tensors and {n_fields} fields do not fit the file: damaged")
    return version, n_tensors, n_fields


def _read_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape (outermost first), type number, offset in the data section."""
    name = cursor.string("tensor name")
    n_dims = cursor.scalar(_U32, name)
    if not 1 <= n_dims <= _MAX_DIMS:
        raise CheckpointError(
            f"{cursor.path}: tensor {name!r} has {n_dims} dimensions, expected 1 to {_MAX_DIMS}: damaged"
        )
    dims = [cursor.scalar(_U64, name) for _ in range(n_dims)]
    return name, tuple(reversed(dims)), cursor.scalar(_U32, name), cursor.scalar(_U64, name)


def _place(
    path: Path, metadata: Metadata, infos: list[tuple[str, tuple[int, ...], int, int]], end: int, size: int
) -> dict[str, TensorInfo]:
    """The tensor directory with absolute offsets; tensors must be aligned, inside the file and apart."""
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise CheckpointError(f"{path}: metadata 'general.alignment' is {alignment!r:.40}, expected a power of two")
    data = -(-end // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    position = data
    for name, shape, kind, offset in sorted(infos, key=lambda info: info[3]):
        if name in tensors:
            raise CheckpointError(f"{path}: tensor {name!r} is there twice")
        info = _tensor_info(path, name, shape, kind, data + offset)
        if offset % alignment or info.offset < position:
            raise CheckpointError(
                f"{path}: tensor {name!r} at offset {offset} overlaps another or is not aligned: damaged"
            )
        position = info.offset + info.nbytes
        if position > size:
            raise CheckpointError(f"{path}: tensor {name!r} ends at byte {position}, the file at {size}: truncated")
        tensors[name] = info
    return tensors


def _tensor_info(path: Path, name: str, shape: tuple[int, ...], kind: int, offset: int) -> TensorInfo:
    form = GGML_TYPES.get(kind)
    if form is None:
        raise CheckpointError(f"{path}: tensor {name!r} has unknown type {kind}: damaged, or a newer format")
    if 0 in shape or shape[-1] % form.block:
        raise CheckpointError(
            f"{path}: tensor {name!r}: shape {list(shape)} does not fit {form.name}, with {form.block} elements a block"
        )
    return TensorInfo(name, shape, form, offset, math.prod(shape) // form.block * form.nbytes)
