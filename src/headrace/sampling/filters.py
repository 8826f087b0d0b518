"""Top-k, top-p and min-p.

The tokens of a row have one order: larger scaled logit first, lower id first on ties. Every filter keeps a prefix of
that order, so what is kept is a count, and rows are only ordered as far as they are kept.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .numerics import MASS_ONE, masses

_SORT_WHOLE = 1024
"""Vocabularies up to this size are sorted whole: cheaper than looking for the end of a prefix."""

_FIRST_LOOK = 256
"""Tokens of the order that are looked at first for a top-p cut; most cuts come sooner."""

_LOOK_FURTHER = 16
"""When they are not enough, this many times as many are looked at next."""


class Filters(NamedTuple):
    """Options of R rows, as columns [R, 1]."""

    top_k: Tensor
    """int64; at least V keeps all."""
    top_p: Tensor
    """float64 in (0, 1]."""
    min_p: Tensor
    """float64 in [0, 1]."""


class Kept(NamedTuple):
    """The first tokens of the order of R rows; all [R, N]."""

    ids: Tensor
    scaled: Tensor
    mass: Tensor
    """0 for tokens not kept."""
    is_kept: Tensor

    def rows(self, which: Tensor) -> Kept:
        return Kept(*(column[which] for column in self))


def ordered_prefix(scaled: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The first ``length`` (at most V) tokens of each row in order: (values, ids), both [R, length].

    Where tokens tie at the end of the prefix the lower ids are in it, except for tokens at -inf.
    """
    vocab_size = scaled.shape[-1]
    length = min(length, vocab_size)
    if vocab_size <= _SORT_WHOLE or length > vocab_size // 8:
        values, ids = torch.sort(scaled, dim=-1, descending=True, stable=True)
        return values[:, :length], ids[:, :length]
    values, ids = torch.topk(scaled, length, dim=-1)
    last = values[:, -1:]
    is_cut_in_tie = ((scaled >= last).sum(-1) != length) & (last.squeeze(-1) > -torch.inf)
    for row in is_cut_in_tie.nonzero().flatten().tolist():
        ids[row] = torch.sort(scaled[row], descending=True, stable=True).indices[:length]
        values[row] = scaled[row][ids[row]]
    return _ties_to_lower_ids(values, ids)


def _ties_to_lower_ids(values: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Sorts [R, N] by falling value, then rising id."""
    ids, by_id = ids.sort(-1)
    values, by_value = torch.sort(values.gather(-1, by_id), dim=-1, descending=True, stable=True)
    return values, ids.gather(-1, by_value)


def keep(scaled: Tensor, filters: Filters) -> Kept:
    """Applies top-k, then top-p within what top-k kept, then min-p, to scaled logits [R, V] (largest of a row: 0)."""
    vocab_size = scaled.shape[-1]
    has_top_k = filters.top_k < vocab_size
    total = masses(scaled).sum(-1, keepdim=True) if not bool(has_top_k.all()) else torch.zeros_like(filters.top_k)
    wanted = torch.where(has_top_k, filters.top_k, _FIRST_LOOK)
    length = min(int(wanted.max()), vocab_size)
    while True:
        kept, is_open = _keep_within(scaled, length, total, filters)
        if length == vocab_size or not is_open:
            return kept
        length = min(length * _LOOK_FURTHER, vocab_size)


def _keep_within(scaled: Tensor, length: int, total: Tensor, filters: Filters) -> tuple[Kept, bool]:
    """``keep`` looking at ``length`` tokens of the order; the bool says that some row may keep more than that."""
    values, ids = ordered_prefix(scaled, length)
    mass = masses(values)
    rank = torch.arange(values.shape[-1], device=scaled.device)[None, :]
    mass = torch.where(rank < filters.top_k, mass, 0)
    has_top_k = filters.top_k < scaled.shape[-1]
    total = torch.where(has_top_k, mass.sum(-1, keepdim=True), total)
    before = mass.cumsum(-1) - mass
    needed = (total.to(torch.float64) * filters.top_p).to(torch.int64).clamp_min(1)
    # A p of 1 keeps all, whatever the product rounds to.
    is_kept = (before < needed) | (filters.top_p >= 1.0)
    is_kept &= (rank < filters.top_k) & (mass >= min_mass(filters.min_p)) & (values > -torch.inf)
    is_open = bool((is_kept[:, -1:] & ~has_top_k).any())
    return Kept(ids, values, torch.where(is_kept, mass, 0), is_kept), is_open


def min_mass(min_p: Tensor) -> Tensor:
    """The least mass that min-p keeps, int64: the given share of the largest mass of the row."""
    return (min_p * float(MASS_ONE)).to(torch.int64)
