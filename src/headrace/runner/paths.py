"""Drafts that part: the paths of a draft tree, and which rows stand for their tokens.

path 0        a b c          rows, one path behind another:   t a b c | d | e f
path 1        a b d          1 has 2 drafts in common with those before it, 2 has none; t is the newest token
path 2        e f
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Path = tuple[int, ...]
"""Draft tokens, from the first on."""


@dataclass(frozen=True, slots=True)
class DraftTree:
    """Paths from the root to every leaf, those with a common beginning next to each other."""

    paths: tuple[Path, ...]

    @property
    def shared(self) -> tuple[int, ...]:
        """Of each path, how many of its drafts stand on the one before it."""
        before: list[Path] = [(), *self.paths[:-1]]
        return tuple(_common(*pair) for pair in zip(before, self.paths, strict=True))

    @property
    def n_drafts(self) -> int:
        return sum(map(len, self.paths)) - sum(self.shared)


def _common(one: Path, other: Path) -> int:
    shorter = min(len(one), len(other))
    return next((at for at in range(shorter) if one[at] != other[at]), shorter)


def path_rows(first: int, paths: Sequence[Path], skipped: Sequence[int]) -> tuple[np.ndarray, ...]:
    """The rows of each path, int64 [1 + its drafts]: of the newest token, then of its drafts.

    Args:
        first: the row of the newest token on the first path.
        skipped: of each path, how many of these rows are those of the path before it.
    """
    rows: list[np.ndarray] = []
    for path, skip in zip(paths, skipped, strict=True):
        own = np.arange(first, first + 1 + len(path) - skip)
        rows.append(np.concatenate((rows[-1][:skip], own)) if rows else own)
        first += len(own)
    return tuple(rows)


def best_path(paths: Sequence[Path], rows: Sequence[np.ndarray], sampled: np.ndarray) -> int:
    """The path whose drafts are ``sampled`` in the rows before them for longest; the first of equals."""
    right = [
        next((at for at, draft in enumerate(path) if sampled[mine[at]] != draft), len(path))
        for path, mine in zip(paths, rows, strict=True)
    ]
    return right.index(max(right))
