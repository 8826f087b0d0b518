"""Parameters as plain tensors, whatever their storage."""

from __future__ import annotations

import torch

from headrace.layers.base import Parameter


def plain(parameter: Parameter) -> torch.Tensor:
    """The values of a loaded parameter, in its shape."""
    if isinstance(parameter.data, torch.Tensor):
        return parameter.data
    values = parameter.storage.embed(torch.arange(parameter.shape[0]), parameter.data)  # type: ignore[attr-defined]
    assert values.shape == parameter.shape
    return values


def set_plain(parameter: Parameter, values: torch.Tensor) -> None:
    """Overwrites a loaded parameter."""
    assert values.shape == parameter.shape
    parameter.storage.fill(parameter.data, 0, values)
