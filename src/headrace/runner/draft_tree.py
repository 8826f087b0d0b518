"""Draft trees: a head goes on from several of its guesses at once, and what is likeliest of all of them is checked.

    depth 1   the head's best guesses after the newest token          a   e
    depth 2   rows for a and e, each in a lane of its own             b c   f g
    depth 3   rows for the best of those                              ...

Paths that part read keys of their own at the same positions, so each row of the head has a lane (see ``lanes.py``),
which takes over what the head has written on its path. Greedy requests grow trees by the head's probabilities; those
that draw by its guesses together with the noise of the draw that they have to meet (see ``sampling.candidates``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from headrace.core.plan import SeqResult, SeqWork, SlotInit
from headrace.sampling import CandidateFinder, SampleRows

from .draft_head import HeadDrafter
from .gather import ResolvedWork
from .growing import ROOT, GrowingTree
from .lanes import Lanes
from .paths import DraftTree
from .slots import SlotTable


class TreeDrafter:
    """See ``drafter.Drafter``. Works without rows for branches have chains.

    Args:
        head: makes chains, and reads what the target has made.
        finder: of what may follow a draft.
        width: drafts that go on at a depth, at most.
        views: of the head's own layers in the arena, by group: [n_blocks, n_layers, numbers].
    """

    def __init__(
        self,
        head: HeadDrafter,
        finder: CandidateFinder,
        width: int,
        lanes: Lanes,
        views: Sequence[torch.Tensor],
        slots: SlotTable,
    ) -> None:
        self._head, self._finder, self._width = head, finder, width
        self._lanes, self._views, self._slots = lanes, views, slots

    def bind(self, init: SlotInit) -> None:
        self._head.bind(init)
        self._finder.bind(init)

    def release(self, slot: int) -> None:
        self._head.release(slot)

    def observe(self, resolved: Sequence[ResolvedWork], results: Sequence[SeqResult]) -> None:
        self._head.observe(resolved, results)

    def drafts(self, works: Sequence[SeqWork], counters: Counter[str]) -> Sequence[tuple[int, ...] | DraftTree]:
        branch = [work.more_drafts > 0 and self._head.is_ready(work.slot) for work in works]
        chains = iter(self._head.drafts([work for work, one in zip(works, branch, strict=True) if not one], counters))
        trees = iter(self._grow([work for work, one in zip(works, branch, strict=True) if one]))
        made = [next(trees) if one else next(chains) for one in branch]
        for tree in made:
            if isinstance(tree, DraftTree):
                self._head.count(tree.n_drafts, counters)
                counters["draft_branches"] += len(tree.paths) - 1
        return made

    def _grow(self, works: Sequence[SeqWork]) -> list[DraftTree | tuple[int, ...]]:
        if not works:
            return []
        trees = [
            GrowingTree(len(work.draft_tokens), work.n_rows - work.n_tokens, whole=self._lanes.whole) for work in works
        ]
        slots = [work.slot for work in works]
        for number, slot in enumerate(slots):
            self._lanes.open(slot, self._lanes_of(number), int(self._slots.known[slot]) - 1)
        front = [(number, ROOT) for number in range(len(trees))]
        lane_of = {(number, ROOT): slot for number, slot in enumerate(slots)}
        logits, states = self._head.made(np.array(slots, np.int64))
        for depth in range(1, max(tree.depth for tree in trees) + 1):
            tokens, scores = self._finder.find(self._rows(front, trees, slots, depth), logits)
            for (number, node), ids, shares in zip(front, tokens, scores, strict=True):
                trees[number].add(node, ids, shares)
            before = {place: row for row, place in enumerate(front)}
            front = [
                (number, node)
                for number, tree in enumerate(trees)
                if depth < tree.depth
                for node in tree.front(depth, self._width)
            ]
            if not front:
                break
            lane_of = self._into_lanes(front, trees, slots, lane_of, depth)
            lanes = np.array([lane_of[place] for place in front], np.int64)
            known = self._slots.known[[slots[number] for number, _ in front]]
            parents = [before[number, trees[number].parent(node)] for number, node in front]
            logits, states = self._head.go_on(lanes, known - 2 + depth, states[parents])
        found = [tree.tree() for tree in trees]
        return [tree if tree.paths else () for tree in found]

    def _lanes_of(self, number: int) -> list[int]:
        return [self._lanes.lane(number * self._width + at) for at in range(self._width)]

    def _rows(
        self, front: Sequence[tuple[int, int]], trees: Sequence[GrowingTree], slots: Sequence[int], depth: int
    ) -> SampleRows:
        """One row for each of ``front``: of what follows a path of ``depth`` - 1 drafts."""
        mine = np.array([slots[number] for number, _ in front], np.int64)
        paths = [trees[number].path(node) for number, node in front]
        skipped = np.full(len(front), depth - 1)
        positions = self._slots.known[mine] + skipped
        return SampleRows(mine, positions, np.arange(len(front)), paths, self._slots.known_history, None, skipped)

    def _into_lanes(
        self,
        front: Sequence[tuple[int, int]],
        trees: Sequence[GrowingTree],
        slots: Sequence[int],
        lane_of: dict[tuple[int, int], int],
        depth: int,
    ) -> dict[tuple[int, int], int]:
        """A lane for each of ``front``, with the draft laid and all that the head has written before it."""
        found = {}
        for number, tree in enumerate(trees):
            nodes = [node for mine, node in front if mine == number]
            lanes = self._lanes_of(number)[: len(nodes)]
            sources = [lane_of[number, tree.parent(node)] for node in nodes]
            newest = int(self._slots.known[slots[number]]) - 1
            if nodes:
                self._lanes.hand_on(self._views, sources, lanes, newest, newest + depth - 2)
            for node, lane in zip(nodes, lanes, strict=True):
                self._slots.history[lane, newest + depth] = tree.token(node)
                found[number, node] = lane
        return found
