"""How a parameter lies in memory: the contract, and the plain way, one tensor."""

from __future__ import annotations

from typing import Any, Protocol

import torch


class Storage(Protocol):
    """Makes the memory of parameters and fills it. What it makes is opaque to all but the operators that read it."""

    def nbytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        """Bytes that ``empty`` takes, padding included."""
        ...

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Any:
        """Memory for a parameter of ``shape``; every row is to be filled."""
        ...

    def fill(self, data: Any, first_row: int, rows: torch.Tensor) -> None:
        """Puts ``rows`` [n, ...] into the rows from ``first_row`` on, converted to the dtype of ``data``."""
        ...

    def memory(self, data: Any) -> list[torch.Tensor]:
        """All bytes of ``data``, in tensors [n] uint8 over them."""
        ...


class PlainStorage:
    """A parameter is a tensor of its shape."""

    def nbytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        return torch.Size(shape).numel() * dtype.itemsize

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    def fill(self, data: torch.Tensor, first_row: int, rows: torch.Tensor) -> None:
        data[first_row : first_row + rows.shape[0]] = rows

    def memory(self, data: torch.Tensor) -> list[torch.Tensor]:
        return [data.view(-1).view(torch.uint8)]


PLAIN = PlainStorage()
