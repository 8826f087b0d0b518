"""Lanes: where the paths of a draft tree lie that part from the first.

A lane is a row of the slot table behind the slots. It has the tokens and the blocks of its sequence's slot, but for the
last blocks, from the newest token's on: those are its own, out of some that nobody else has. So a row of a tree sees
its path as the slot would see it, at the same places of a block table, and no operator knows of trees. Lanes last for
a step: what is in the one that was right is copied into the slot's blocks.

States of recurrent layers are not copied: rows of a tree read the slot's, and move it on when one path has been chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from headrace.cache.groups import CacheGroup
from headrace.cache.specs import RecurrentState
from headrace.core.plan import BLOCK_TOKENS

from .paths import DraftTree, Path
from .slots import SlotTable

_BY_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32}


def spare_blocks(groups: Sequence[CacheGroup], n_lanes: int, max_drafts: int) -> list[int]:
    """Blocks of each group that lanes need for the newest token and ``max_drafts`` drafts, wherever those begin."""
    each = n_lanes * (1 + -(-max_drafts // BLOCK_TOKENS))
    return [each * (group.spec.of_tokens and not isinstance(group.spec, RecurrentState)) for group in groups]


@dataclass(frozen=True, slots=True)
class Branch:
    """A path of a tree beside the first, and its lane."""

    drafts: Path
    shared: int
    """Drafts that the path before it has too."""
    skipped: int
    """Rows of the newest token and of drafts that it leaves to the path before it."""
    lane: int
    """Row of the slot table."""

    @property
    def n_rows(self) -> int:
        return 1 + len(self.drafts) - self.skipped

    @property
    def n_new(self) -> int:
        """Drafts that no path before it has."""
        return len(self.drafts) - self.shared


class Lanes:
    """``slots.n_lanes`` lanes.

    Args:
        groups: of the cache, in the order of the block tables.
        views: the arena by group, [n_blocks, n_layers, numbers].
        spare: by group, the lanes' own blocks, as many as ``spare_blocks`` says.
    """

    def __init__(
        self, slots: SlotTable, groups: Sequence[CacheGroup], views: Sequence[torch.Tensor], spare: Sequence[range]
    ) -> None:
        self.whole = True
        """A branch has rows for all of its path, which write what it sees of it."""
        self._slots = slots
        self._layers = [group.layers for group in groups]
        self._views = [view.view(_BY_SIZE[view.dtype.itemsize]) for view in views]
        self._groups = [group for group, blocks in enumerate(spare) if blocks]
        self._spare = spare
        self._width = max((len(blocks) for blocks in spare), default=0) // max(1, slots.n_lanes)

    def layers_from(self, first: int) -> list[torch.Tensor]:
        """The views of the layers from number ``first`` on."""
        skipped = [sum(layer < first for layer in layers) for layers in self._layers]
        return [view[:, skip:] for view, skip in zip(self._views, skipped, strict=True)]

    def lane(self, number: int) -> int:
        """The row of the slot table."""
        return self._slots.n_slots + number

    def branches(self, tree: DraftTree, taken: int) -> tuple[Branch, ...]:
        """The paths of ``tree`` beside its first, in lanes from number ``taken`` on. A lane begins with the newest
        token, as what a row sees of its path is written by the rows of its own lane."""
        others = zip(tree.paths[1:], tree.shared[1:], strict=True)
        return tuple(Branch(path, shared, 0, self.lane(taken + at)) for at, (path, shared) in enumerate(others))

    def lay(self, slot: int, branches: Sequence[Branch], position: int) -> None:
        """Opens the lanes of ``branches``, with all that they see of what is computed: ``position`` tokens."""
        self.open(slot, [branch.lane for branch in branches], position)
        history, known = self._slots.history, self._slots.known[slot]
        for branch in branches:
            if position % BLOCK_TOKENS:
                self.copy(slot, branch.lane, position, position)
            history[branch.lane, position:known] = history[slot, position:known]
            history[branch.lane, known : known + len(branch.drafts)] = branch.drafts

    def open(self, slot: int, lanes: Sequence[int], position: int) -> None:
        """From the block of ``position`` on they have their own, whose keys are still anything."""
        slots, column = self._slots, position // BLOCK_TOKENS
        for group, table in enumerate(slots.block_tables):
            table[lanes] = table[slot]
            if group in self._groups:
                width = min(self._width, table.shape[1] - column)
                for lane in lanes:
                    first = self._spare[group].start + (lane - slots.n_slots) * self._width
                    table[lane, column : column + width] = range(first, first + width)
        slots.adapter[lanes] = slots.adapter[slot]
        slots.second_from[lanes] = slots.second_from[slot]
        for lane in lanes:
            slots.seen_media[lane] = slots.seen_media[slot]

    def copy(self, source: int, target: int, first: int, last: int) -> None:
        """All that ``source`` has in the blocks of positions ``first`` to ``last``, to ``target``."""
        for group in self._groups:
            table, view = self._slots.block_tables[group], self._views[group]
            columns = slice(first // BLOCK_TOKENS, last // BLOCK_TOKENS + 1)
            for read, written in zip(table[source, columns].tolist(), table[target, columns].tolist(), strict=True):
                view[written].copy_(view[read])

    def hand_on(
        self, views: Sequence[torch.Tensor], sources: Sequence[int], targets: Sequence[int], first: int, last: int
    ) -> None:
        """The same of some layers of the arena (see ``layers_from``), for several at once: one may be both."""
        for group in self._groups:
            view = views[group]
            if not view.shape[1]:
                continue
            table, columns = self._slots.block_tables[group], slice(first // BLOCK_TOKENS, last // BLOCK_TOKENS + 1)
            read, written = (torch.from_numpy(table[at, columns].flatten()).long() for at in (sources, targets))
            view[written] = view[read]
