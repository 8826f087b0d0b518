"""The metadata of a GGUF file. Its long arrays of strings are decoded when somebody asks for them. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.core.errors import CheckpointError

_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class StringArray:
    """An array of strings as it stands in the file: before each its length, in eight bytes."""

    data: bytes
    ends: list[int]
    """Where each string ends in ``data``."""

    def decode(self, path: Path, key: str) -> list[str]:
        """The strings. Raises ``CheckpointError`` (with ``path`` and ``key``) if one is not UTF-8."""
        data, position, strings = self.data, 0, []
        try:
            for end in self.ends:
                strings.append(str(data[position + _LENGTH_BYTES : end], "utf-8"))
                position = end
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path}: metadata {key!r}: string {len(strings)}: {error}: damaged") from error
        return strings


class Metadata(Mapping[str, Any]):
    """Key to value: numbers, booleans and strings; arrays of strings as lists, arrays of numbers as numpy arrays.

    A vocabulary is most of a header, and a process that only loads weights never looks at it. Looking up an array of
    strings for the first time raises ``CheckpointError`` if it is damaged.
    """

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self._path = path
        self._values = dict(values)

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        if isinstance(value, StringArray):
            value = self._values[key] = value.decode(self._path, key)
        return value

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
