"""Typed access to the metadata of one GGUF architecture."""

from __future__ import annotations

from typing import Any

import numpy as np

from headrace.core.errors import CheckpointError

from .gguf_reader import GgufHeader


class Fields:
    """Keys are given without the architecture's prefix; a missing or mistyped one raises and is named."""

    def __init__(self, header: GgufHeader) -> None:
        self._header = header
        self.arch: str = self._checked("general.architecture", self._header.metadata.get("general.architecture"), str)

    def error(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self._header.path}: {message}")

    def integer(self, key: str, default: int | None = None, *, at_least: int = 1, some: bool = False) -> int:
        """An integer (an array of equal ones is taken as well: some writers repeat it per layer).

        Args:
            some: layers that do not have it have a 0 in that array; the default is for files where none has it.
        """
        value = self._get(key)
        if isinstance(value, np.ndarray) and some:
            value = value[value != 0] if value.any() else None
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()
        number: int = self._checked(key, default if value is None else value, int)
        if number < at_least:
            raise self.error(f"metadata {self._name(key)!r} is {number}, expected {_least(at_least)}")
        return number

    def optional_integer(self, key: str) -> int | None:
        return None if self._get(key) is None else self.integer(key)

    def window(self, key: str, default: int | None = None) -> int | None:
        """A positive integer; 0 means None."""
        value = self._get(key)
        if value is None:
            return default
        return None if type(value) is int and value == 0 else self.integer(key)

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number; float32 values come as the shortest decimal that means the same float32."""
        value = self._get(key)
        value = default if value is None else value
        number = float(str(np.float32(self._checked(key, value, (int, float)))))
        if not 0 < number < float("inf"):
            raise self.error(f"metadata {self._name(key)!r} is {value}, expected a positive finite number")
        return number

    def optional_number(self, key: str) -> float | None:
        return None if self._get(key) is None else self.number(key)

    def text(self, key: str, default: str) -> str:
        value = self._get(key)
        return self._checked(key, default if value is None else value, str)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(f"metadata {self._name(key)!r} is {value!r:.40}, expected true or false")
        return value

    def flags(self, key: str) -> list[bool] | None:
        """An array of booleans, or None."""
        value = self._get(key)
        if value is None:
            return None
        if not isinstance(value, np.ndarray) or value.dtype != bool:
            raise self.error(f"metadata {self._name(key)!r}: expected an array of booleans")
        return value.tolist()

    def shape(self, tensor: str) -> tuple[int, ...]:
        if tensor not in self._header.tensors:
            raise self.error(f"tensor {tensor!r} is missing")
        return self._header.tensors[tensor].shape

    def has_tensor(self, tensor: str) -> bool:
        return tensor in self._header.tensors

    def _name(self, key: str) -> str:
        return f"{self.arch}.{key}"

    def _get(self, key: str) -> Any:
        return self._header.metadata.get(self._name(key))

    def _checked(self, key: str, value: Any, kind: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, kind):
            found = "is missing" if value is None else f"has the wrong type ({type(value).__name__})"
            name = key if key.startswith("general.") else self._name(key)
            raise self.error(f"metadata {name!r} {found}")
        return value


def _least(number: int) -> str:
    return "a positive number" if number == 1 else f"at least {number}"
