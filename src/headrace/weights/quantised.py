"""A folder whose matrices are stored as small numbers and scales, as the ``Checkpoint`` of their values or blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from headrace.core.errors import ModelError
from headrace.quant.formats import BlockFormat, BlockRows

from . import awq, compressed_tensors, fp8, gptq, modelopt, mxfp4
from .files import Rows, check_destination, fill_by_rows, read_optional_json
from .forms import Found
from .safetensors import SafetensorsCheckpoint

Find = Callable[[SafetensorsCheckpoint, Mapping[str, Any]], Found]
"""From the stored tensors and ``quantization_config``. Raises ModelError or CheckpointError."""

_METHODS: dict[str, Find] = {
    "awq": awq.find,
    "compressed-tensors": compressed_tensors.find,
    "fbgemm_fp8": fp8.find,
    "fp8": fp8.find,
    "gptq": gptq.find,
    "modelopt": modelopt.find,
    "mxfp4": mxfp4.find,
}


def quantisation_of(stored: SafetensorsCheckpoint) -> dict[str, Any] | None:
    """The fields that say how a folder is quantised, ``quant_method`` among them, or None."""
    found = stored.config().get("quantization_config")
    if found is None:
        # ModelOpt writes a file of its own, in older versions nothing else.
        found = read_optional_json(stored.path / "hf_quant_config.json").get("quantization")
        found = found if found is None else {"quant_method": "modelopt", **found}
    if found is None:
        return None
    if not isinstance(found, Mapping):
        raise ModelError(f"{stored.path}: quantization_config must be an object, got {found!r:.60}")
    return dict(found)


def open_quantised(stored: SafetensorsCheckpoint, config: Mapping[str, Any]) -> QuantisedCheckpoint:
    """``config``: of ``quantisation_of``. Raises ModelError for a form that is not known."""
    method = config.get("quant_method")
    if method not in _METHODS:
        known = ", ".join(_METHODS)
        raise ModelError(
            f"{stored.path}: quantization_config.quant_method = {method!r} is not known; known: {known}; and GGUF"
            " files. Use the original weights: quantization='int8' or 'int4' rounds them when they are loaded"
        )
    return QuantisedCheckpoint(stored, str(method), _METHODS[method](stored, config))


class QuantisedCheckpoint:
    """A ``Checkpoint`` that also has ``block_format`` and ``block_rows``."""

    def __init__(self, stored: SafetensorsCheckpoint, method: str, found: Found) -> None:
        self.path = stored.path
        self.method = method
        """Its ``quant_method``."""
        self._stored, self._forms = stored, found.forms
        at = {form.stored: name for name, form in found.forms.items()}
        names = (at.get(name, name) for name in stored.names() if name in at or name not in found.hidden)
        self._names = tuple(names)

    def config(self) -> dict[str, Any]:
        """Without ``quantization_config``: how to read the tensors is not the model's concern."""
        return {name: value for name, value in self._stored.config().items() if name != "quantization_config"}

    def generation_config(self) -> dict[str, Any]:
        return self._stored.generation_config()

    def names(self) -> Sequence[str]:
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._forms[name].shape if name in self._forms else self._stored.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return self._forms[name].dtype if name in self._forms else self._stored.dtype(name)

    def tensor(self, name: str) -> torch.Tensor:
        out = torch.empty(self.shape(name), dtype=self.dtype(name))
        self.read_into(name, out)
        return out

    def read_into(self, name: str, out: torch.Tensor) -> None:
        if name not in self._forms:
            self._stored.read_into(name, out)
            return
        check_destination(out, self.shape(name), self.path, name)
        fill_by_rows(out, self.rows(name))

    def rows(self, name: str) -> Rows:
        return self._forms[name].rows(self.path) if name in self._forms else self._stored.rows(name)

    def block_format(self, name: str) -> BlockFormat | None:
        """How a tensor is kept without loss; None for floats, and for what there are no kernels for."""
        return self._forms[name].format if name in self._forms else None

    def block_rows(self, name: str) -> Iterator[tuple[int, BlockRows]]:
        """As ``rows``, in the format of ``block_format``."""
        return self._forms[name].block_rows(self.path)

    def unpacked(self) -> dict[str, int]:
        """What cannot stay in its few bits: form and reason -> how many tensors."""
        return dict(Counter(f"{form.label}: {form.why_dense}" for form in self._forms.values() if form.why_dense))

    def kept(self) -> dict[str, int]:
        """What can: form and format -> how many tensors."""
        return dict(Counter(f"{form.label}: {form.format}" for form in self._forms.values() if not form.why_dense))

    def file_of(self, name: str) -> Path:
        return self._stored.file_of(self._forms[name].stored if name in self._forms else name)

    def nbytes(self) -> int:
        return self._stored.nbytes()

    def close(self) -> None:
        self._stored.close()
