"""What a checkpoint can be asked, whatever its format."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from headrace.core.errors import CheckpointError, ModelError

if TYPE_CHECKING:
    import torch

    from .files import Rows


class Checkpoint(Protocol):
    """Tensors by their Hugging Face names, and the model's configuration.

    Opening reads headers only. ``tensor``, ``read_into`` and ``rows`` hold at most a few MiB beside the destination,
    and leave nothing resident: a model is loaded in its own size plus that.
    """

    path: Path
    """The folder, or the .gguf file."""

    def config(self) -> dict[str, Any]:
        """The fields of a Hugging Face ``config.json``; a fresh copy."""
        ...

    def generation_config(self) -> dict[str, Any]:
        """The fields of a ``generation_config.json``, empty if there is none; a fresh copy."""
        ...

    def names(self) -> Sequence[str]:
        """Tensor names, in the order in which reading them goes through the files once."""
        ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> torch.dtype:
        """The dtype that ``tensor`` gives: the stored one, float32 for block-quantised forms."""
        ...

    def tensor(self, name: str) -> torch.Tensor:
        """A fresh tensor on the CPU."""
        ...

    def read_into(self, name: str, out: torch.Tensor) -> None:
        """Read into contiguous CPU memory of the tensor's shape, converting to the dtype of ``out``."""
        ...

    def rows(self, name: str) -> Rows:
        """The tensor's rows in order, about a MiB at a time, in the dtype that ``tensor`` gives. For tensors of one
        dimension or more."""
        ...

    def file_of(self, name: str) -> Path: ...

    def nbytes(self) -> int:
        """Bytes of all tensors as stored."""
        ...

    def close(self) -> None: ...


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a folder (``config.json`` and ``*.safetensors``) or a ``.gguf`` file.

    Raises ``ModelError`` if there is nothing of the kind, ``CheckpointError`` if it is damaged.
    """
    path = Path(path)
    if path.is_dir():
        from .quantised import open_quantised, quantisation_of
        from .safetensors import SafetensorsCheckpoint

        stored = SafetensorsCheckpoint(path)
        quantised = quantisation_of(stored)
        return stored if quantised is None else open_quantised(stored, quantised)
    if path.suffix == ".gguf" and path.is_file():
        from .gguf import GgufCheckpoint

        return GgufCheckpoint(path)
    found = "a file of another kind" if path.exists() else "nothing there"
    raise ModelError(
        f"{path}: expected a folder with config.json and *.safetensors, or a .gguf file; found {found}. "
        "Give the folder of a model, not one of its files."
    )


def expect(checkpoint: Checkpoint, name: str, shape: Sequence[int]) -> None:
    """Raise ``CheckpointError`` unless the checkpoint holds tensor ``name`` of ``shape``."""
    try:
        found = checkpoint.shape(name)
    except CheckpointError:
        names = checkpoint.names()
        close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
        near = f"close names: {', '.join(close)}" if close else f"no name of its {len(names)} tensors is close"
        raise CheckpointError(
            f"{checkpoint.path}: tensor {name!r} (expected shape {list(shape)}) is missing; {near}"
        ) from None
    if found != tuple(shape):
        raise CheckpointError(
            f"{checkpoint.file_of(name)}: tensor {name!r}: expected shape {list(shape)}, found {list(found)}; "
            "config.json and weights do not belong together"
        )
