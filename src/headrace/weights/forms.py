"""What a quantised folder is made of: tensors in forms of few bits, as each form's own module finds them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from headrace.core.errors import CheckpointError
from headrace.quant.formats import BlockFormat, BlockRows

from .files import Rows
from .safetensors import SafetensorsCheckpoint


class StoredForm(Protocol):
    """A tensor in one of the forms."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    """Of its values."""
    label: str
    """The form, for people."""
    stored: str
    """A tensor of the files that it is made of."""

    @property
    def why_dense(self) -> str:
        """Why it cannot stay in its few bits; empty where it can."""
        ...

    @property
    def format(self) -> BlockFormat | None:
        """How it is kept without loss, or None."""
        ...

    def rows(self, path: Path) -> Rows:
        """Its values."""
        ...

    def block_rows(self, path: Path) -> Iterator[tuple[int, BlockRows]]:
        """As ``rows``, in ``format``; all parts have the dimensions of the tensor."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """What a form finds in a folder."""

    forms: Mapping[str, StoredForm]
    """By the name that the tensor would have in floats."""
    hidden: frozenset[str]
    """Stored tensors that are parts of these, or that are not used."""


def check_part(
    stored: SafetensorsCheckpoint, name: str, dtypes: tuple[torch.dtype, ...], shape: tuple[int, ...]
) -> None:
    """Raises CheckpointError unless there is a tensor ``name`` of one of the dtypes and of ``shape``."""
    found = f"{stored.dtype(name)} {list(stored.shape(name))}"
    if stored.dtype(name) not in dtypes or stored.shape(name) != shape:
        kinds = " or ".join(map(str, dtypes))
        raise CheckpointError(f"{stored.file_of(name)}: tensor {name!r}: expected {kinds} {list(shape)}, found {found}")
