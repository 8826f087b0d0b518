"""A checkpoint whose tensors go by other names than those in its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch

    from .files import Rows


class Renamed:
    """``Checkpoint`` over another one. ``ends``: ends of stored names, and what stands there instead."""

    def __init__(self, stored: Checkpoint, ends: Mapping[str, str]) -> None:
        self._stored = stored
        self.path = stored.path
        self._names: dict[str, str] = {}
        for name in stored.names():
            new = next((name.removesuffix(old) + end for old, end in ends.items() if name.endswith(old)), name)
            self._names[new] = name

    def config(self) -> dict[str, Any]:
        return self._stored.config()

    def generation_config(self) -> dict[str, Any]:
        return self._stored.generation_config()

    def names(self) -> Sequence[str]:
        return tuple(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored.shape(self._name_of(name))

    def dtype(self, name: str) -> torch.dtype:
        return self._stored.dtype(self._name_of(name))

    def tensor(self, name: str) -> torch.Tensor:
        return self._stored.tensor(self._name_of(name))

    def read_into(self, name: str, out: torch.Tensor) -> None:
        self._stored.read_into(self._name_of(name), out)

    def rows(self, name: str) -> Rows:
        return self._stored.rows(self._name_of(name))

    def file_of(self, name: str) -> Path:
        return self._stored.file_of(self._name_of(name))

    def nbytes(self) -> int:
        return self._stored.nbytes()

    def close(self) -> None:
        self._stored.close()

    def _name_of(self, name: str) -> str:
        """The stored one; a name that is not there is left for the stored checkpoint to complain about."""
        return self._names.get(name, name)
