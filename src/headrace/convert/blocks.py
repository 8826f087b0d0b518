"""Which tensors of a model are in blocks when it is loaded in a mode, and their rows as they are then."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from headrace.core.errors import ConfigError
from headrace.layers.base import BuildContext, Weight
from headrace.models.registry import build_model
from headrace.ops.table import select_ops
from headrace.quant.formats import INT4, INT8, BlockFormat, BlockRows
from headrace.quant.schemes import AtLoad
from headrace.weights.checkpoint import Checkpoint

ROUNDED = {"int8": INT8, "int4": INT4}
"""Modes by name: the format of weights that are no tables."""


@dataclass(frozen=True, slots=True)
class Rounded:
    """Tensors as ``quant_algo`` int8 or int4 has them."""

    checkpoint: Checkpoint
    formats: dict[str, BlockFormat]
    """By the checkpoint's names; what is not there stays in floats."""
    _scheme: AtLoad

    def rows(self, name: str) -> Iterator[tuple[int, BlockRows]]:
        """(first row, rows): the numbers and scales that loading would make, bit for bit."""
        return self._scheme.rows(self.checkpoint, name, self.formats[name])


def rounded(checkpoint: Checkpoint, mode: str) -> Rounded:
    """``mode``: of ``ROUNDED``. Builds the model without memory. Raises what building a model raises, and
    ``ConfigError`` for a model whose tensors are turned or renamed before they are rounded."""
    ops = select_ops("cpu", torch.float32)
    scheme = AtLoad(ROUNDED[mode], ops.round_blocks)
    model = build_model(checkpoint.config(), BuildContext(ops, torch.float32, scheme=scheme))
    weights = [one for one in model.parameters() if isinstance(one, Weight) and one.formats]
    formats = {name: form for weight in weights for name, form in weight.formats.items()}
    turned = {source.name for weight in weights for source in weight.sources if source.turn is not None}
    lost = sorted(turned | (formats.keys() - set(checkpoint.names())))
    if lost:
        raise ConfigError(
            f"{checkpoint.path}: {lost[0]!r} is turned or renamed when it is loaded, and rounded after that; such"
            f" a model is not written in blocks: load it with quantization {mode!r} instead, or convert it to 'hf'"
        )
    return Rounded(checkpoint, formats, scheme)
