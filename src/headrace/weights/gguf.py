"""A GGUF file as a ``Checkpoint``: Hugging Face names, tensors dequantised or in the blocks they are stored in."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headrace.core.errors import CheckpointError
from headrace.quant.formats import BlockFormat, BlockRows

from .files import DataFile, Rows, as_bytes, check_destination, fill_by_rows
from .gguf_blocks import SUPPORTED, dequantise, is_supported
from .gguf_config import hf_config, hf_generation_config, is_left_out
from .gguf_names import is_weight
from .gguf_placement import recipes
from .gguf_reader import TensorInfo
from .gguf_recipes import Recipe
from .gguf_split import read_parts


class GgufCheckpoint:
    """A ``Checkpoint`` over a GGUF file, or the first of several, of an architecture in ``gguf_names``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        header, paths = read_parts(path)
        self._metadata = header.metadata
        self._files: list[DataFile] = []
        try:
            self._files += map(DataFile, paths)
            self._config = hf_config(header, lambda name: self._vector(header.tensors[name]))
            arch = header.metadata["general.architecture"]
            left_out = is_left_out(header)
            infos = [info for name, info in header.tensors.items() if is_weight(name) and not left_out(name)]
            for info in infos:
                _check_type(path, info)
            self._nbytes = sum(info.nbytes for info in infos)
            self._recipes = recipes(path, arch, infos, self._config)
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
        return list(self._recipes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._recipe(name).shape

    def dtype(self, name: str) -> torch.dtype:
        return self._recipe(name).dtype

    def tensor(self, name: str) -> torch.Tensor:
        out = torch.empty(self.shape(name), dtype=self.dtype(name))
        self.read_into(name, out)
        return out

    def read_into(self, name: str, out: torch.Tensor) -> None:
        check_destination(out, self.shape(name), self.path, name)
        fill_by_rows(out, self.rows(name))

    def rows(self, name: str) -> Rows:
        return self._recipe(name).rows(self._raw)

    def block_format(self, name: str) -> BlockFormat | None:
        """How the blocks of a matrix, or of experts, are kept without loss; None for what is not stored in blocks."""
        return self._recipe(name).format

    def block_rows(self, name: str) -> Iterator[tuple[int, BlockRows]]:
        """As ``rows``, in the format of ``block_format``."""
        return self._recipe(name).block_rows(self._raw)

    def file_of(self, name: str) -> Path:
        return self._files[self._recipe(name).pieces[0].info.part].path

    def nbytes(self) -> int:
        return self._nbytes

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _recipe(self, name: str) -> Recipe:
        try:
            return self._recipes[name]
        except KeyError:
            raise CheckpointError(f"{self.path}: tensor {name!r} is missing") from None

    def _raw(self, info: TensorInfo, first: int, last: int) -> torch.Tensor:
        raw = torch.empty(last - first, dtype=torch.uint8)
        self._files[info.part].read_into(as_bytes(raw), info.offset + first, f"tensor {info.name!r}")
        return raw

    def _vector(self, info: TensorInfo) -> np.ndarray:
        _check_type(self.path, info)
        return dequantise(self._raw(info, 0, info.nbytes), info.type).float().numpy()


def _check_type(path: Path, info: TensorInfo) -> None:
    if not is_supported(info.type):
        raise CheckpointError(
            f"{path}: tensor {info.name!r} is stored as {info.type.name}; supported: {', '.join(SUPPORTED)}. "
            "Convert the file to one of these, or use the original safetensors."
        )
