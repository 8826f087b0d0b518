"""What a model's forward sees of a step.

A batch is gathered anew for every step from the slots that take part; nothing in it outlives the step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(slots=True)
class GroupBatch:
    """The part of a batch that belongs to one cache group (layers of equal cache spec)."""

    block_table: torch.Tensor
    """[S, max_blocks] int32: block ids of each sequence, position p is in column p // 32.   by: runner
    Columns outside a sliding window, or beyond the sequence, hold anything."""
    write_index: torch.Tensor
    """[T] int64: block id * 32 + position % 32, where each row's key and value go; for a group whose keys are not the
    rows' own, one for each key that is written in this step.   by: runner"""
    key_ranges: torch.Tensor | None = None
    """[T, 2] int64 on the host: each row sees keys [first, end) of its sequence's table, none where first >= end.
    None: those that the spec of the group says, up to the row's own. Given where rows see keys after their own (spans
    of an image), or keys that are not their own sequence's tokens (cross-attention).   by: runner"""
    metadata: Any = None
    """Opaque to models.   by: ``Ops.plan``, once a group and step"""


@dataclass(slots=True)
class Batch:
    """T rows of S sequences; the rows of one sequence are neighbours, in order of position."""

    input_ids: torch.Tensor
    """[T] int64.   by: runner"""
    positions: torch.Tensor
    """[T] int64.   by: runner"""
    query_starts: torch.Tensor
    """[S + 1] int64 on the host: rows of sequence s are query_starts[s] : query_starts[s + 1].   by: runner"""
    seq_lens: torch.Tensor
    """[S] int64 on the host: length of each sequence including this step's rows.   by: runner"""
    groups: tuple[GroupBatch, ...] = field(default_factory=tuple)
    """One for each cache group, in the order of the model's groups.   by: runner"""
    draft_counts: torch.Tensor | None = None
    """[S] int64 on the host: how many of each sequence's last rows are drafts; None: no draft at all.   by: runner"""
    second_from: torch.Tensor | None = None
    """[S] int64: position at which the second of two texts begins, beyond the end where there is one. None: no
    sequence has two.   by: runner"""
    states: torch.Tensor | None = None
    """[T, n]: hidden states of another model that a draft head reads beside the tokens.   by: runner"""
    adapters: torch.Tensor | None = None
    """[T] int32 on the host: number of each row's adapter, negative for none. None: nobody has one.   by: runner"""

    sees_media: bool = False
    """Some row sees keys of encoded media.   by: runner"""

    @property
    def n_rows(self) -> int:
        return self.input_ids.shape[0]

    @property
    def n_seqs(self) -> int:
        return self.seq_lens.shape[0]

    def is_uniform(self, n: int) -> bool:
        """True when every sequence has exactly ``n`` rows."""
        return self.n_rows == n * self.n_seqs and bool((self.query_starts.diff() == n).all())
