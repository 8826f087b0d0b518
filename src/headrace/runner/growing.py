"""A draft tree while it grows: EAGLE-2's rule (arXiv 2406.16858) for what goes on and what is kept.

A draft is worth the product of the shares that it and those before it have; as a sum of logarithms, its score. At each
depth the best drafts go on; in the end the best of all are kept, which takes no draft without the one before it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from .paths import DraftTree, Path

ROOT = -1


class GrowingTree:
    """Drafts of one sequence, numbered as they come, each after the one before it.

    Args:
        depth: drafts of a path at most.
        n_rows: of all drafts, at most.
        whole: a branch takes rows for all of its path, and the newest token, not only for what is its own.
    """

    def __init__(self, depth: int, n_rows: int, *, whole: bool) -> None:
        self.depth = depth
        self._n_rows, self._whole = n_rows, whole
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._scores: list[float] = []
        self._depths: list[int] = []

    def add(self, parent: int, tokens: Sequence[int], scores: Sequence[float]) -> None:
        """What may follow a draft or ``ROOT``; ``scores``: logarithms of shares."""
        before, depth = (0.0, 1) if parent == ROOT else (self._scores[parent], self._depths[parent] + 1)
        for token, score in zip(tokens, scores, strict=True):
            self._tokens.append(token)
            self._parents.append(parent)
            self._scores.append(before + score)
            self._depths.append(depth)

    def front(self, depth: int, width: int) -> list[int]:
        """At most ``width`` drafts of a depth, the best first: those that might be kept, were nothing to come."""
        return [node for node in self._best()[: self._n_rows] if self._depths[node] == depth][:width]

    def token(self, node: int) -> int:
        return self._tokens[node]

    def parent(self, node: int) -> int:
        return self._parents[node]

    def path(self, node: int) -> Path:
        """The draft and those before it."""
        path: list[int] = []
        while node != ROOT:
            path.append(self._tokens[node])
            node = self._parents[node]
        return tuple(reversed(path))

    def tree(self) -> DraftTree:
        """The drafts that are kept; the first path is that of the best draft at each depth."""
        following = self._kept()
        paths: list[Path] = []
        waiting = list(reversed(following[ROOT]))
        while waiting:
            node = waiting.pop()
            waiting += reversed(following[node])
            if not following[node]:
                paths.append(self.path(node))
        return DraftTree(tuple(paths))

    def _best(self) -> list[int]:
        return sorted(range(len(self._tokens)), key=lambda node: (-self._scores[node], node))

    def _kept(self) -> dict[int, list[int]]:
        """Of the best drafts for which there are rows: by draft, or ``ROOT``, those after it, the best first."""
        kept, following, left = {ROOT}, defaultdict[int, list[int]](list), self._n_rows
        for node in self._best():
            parent = self._parents[node]
            cost = 1 + self._depths[node] if self._whole and following[parent] else 1
            if parent in kept and cost <= left:
                kept.add(node)
                following[parent].append(node)
                left -= cost
        return following
