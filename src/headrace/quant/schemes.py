"""Which weights of a model are in blocks, in which format, and where their rows come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch

from .formats import INT8, BlockFormat, BlockRows


class Scheme(Protocol):
    """Asked while a model is built, about weights of products and look-ups; all else is never in blocks."""

    def format(self, name: str, *, is_table: bool) -> BlockFormat | None:
        """Of the checkpoint's tensor ``name``; None: it stays as it is.

        Args:
            is_table: an embedding or a head, whose errors reach the output straight.
        """
        ...

    def rows(self, checkpoint: Any, name: str, form: BlockFormat) -> Iterator[tuple[int, BlockRows]]:
        """(first row, rows) of a tensor in the format that ``format`` gave."""
        ...


class NoScheme:
    """No weight is in blocks."""

    def format(self, name: str, *, is_table: bool) -> None:
        return None

    def rows(self, checkpoint: Any, name: str, form: BlockFormat) -> Iterator[tuple[int, BlockRows]]:
        raise NotImplementedError(f"{name} is not in blocks")


RoundBlocks = Callable[[torch.Tensor, BlockFormat], BlockRows]
"""Float rows in ``INT8`` or ``INT4``."""


class AtLoad:
    """Floats are rounded as they are read.

    Args:
        weights: the format of weights; ``INT8`` or ``INT4``. Tables are in ``INT8`` either way.
    """

    def __init__(self, weights: BlockFormat, round_blocks: RoundBlocks) -> None:
        self._weights = weights
        self._round_blocks = round_blocks

    def format(self, name: str, *, is_table: bool) -> BlockFormat:
        return INT8 if is_table else self._weights

    def rows(self, checkpoint: Any, name: str, form: BlockFormat) -> Iterator[tuple[int, BlockRows]]:
        for first, rows in checkpoint.rows(name):
            yield first, self._round_blocks(rows, form)


class FromFile:
    """Blocks stay as the file has them, and what it has in floats stays in floats.

    Args:
        checkpoint: has ``block_format(name)`` and ``block_rows(name)`` beside what every checkpoint has.
    """

    def __init__(self, checkpoint: Any) -> None:
        self._checkpoint = checkpoint

    def format(self, name: str, *, is_table: bool) -> BlockFormat | None:
        found: BlockFormat | None = self._checkpoint.block_format(name)
        return found

    def rows(self, checkpoint: Any, name: str, form: BlockFormat) -> Iterator[tuple[int, BlockRows]]:
        yield from checkpoint.block_rows(name)


NO_SCHEME = NoScheme()
