"""Counter-based noise: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

The noise of a token is a pure function of (seed, output index, position, token id). Nothing is drawn in order and no
state is kept, so a row's draw cannot depend on the batch, and drafts can be drawn with the noise of the target.

    key      seed & 0xFFFFFFFF, seed >> 32
    counter  token_id >> 2, position, output_index, domain
    word     token_id & 3 of the four that come out
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

DOMAIN_DRAW = 0
"""Fourth counter word of the noise that draws output tokens; other uses of the same seed take other numbers."""
DOMAIN_ACCEPT = 1
"""Whether rejection sampling keeps a draft."""
DOMAIN_RESIDUAL = 2
"""What it draws in place of one."""

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


class StreamKeys(NamedTuple):
    """Where each row's noise comes from: int64 columns [R, 1] of 32-bit words."""

    seed_low: Tensor
    seed_high: Tensor
    position: Tensor
    output_index: Tensor


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four 32-bit words for each counter; all words are int64 tensors in [0, 2^32), broadcast against each other."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The products fill 64 bits and may look negative: the shift is arithmetic, hence the mask.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = ((p1 >> 32) ^ c1 ^ k0) & _MASK
        c2 = ((p0 >> 32) ^ c3 ^ k1) & _MASK
        c1 = p1.bitwise_and_(_MASK)
        c3 = p0.bitwise_and_(_MASK)
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def noise_of_all(keys: StreamKeys, vocab_size: int, domain: int = DOMAIN_DRAW) -> Tensor:
    """The noise word of every token: int64 [R, vocab_size] in [0, 2^32)."""
    groups = torch.arange((vocab_size + 3) >> 2, device=keys.position.device)[None, :]
    words = _words(keys, groups, domain)
    rows, n_groups = keys.position.shape[0], groups.shape[1]
    return torch.stack([word.expand(rows, n_groups) for word in words], -1).view(rows, -1)[:, :vocab_size]


def noise_of(keys: StreamKeys, token_ids: Tensor, domain: int = DOMAIN_DRAW) -> Tensor:
    """The noise words of some tokens of each row: int64 [R, N] for ids [R, N]. Equal to those of ``noise_of_all``."""
    words = torch.stack(_words(keys, token_ids >> 2, domain), -1)
    return words.gather(-1, (token_ids & 3).unsqueeze(-1)).squeeze(-1)


def _words(keys: StreamKeys, groups: Tensor, domain: int) -> tuple[Tensor, ...]:
    counter = (groups, keys.position, keys.output_index, torch.full_like(keys.position, domain))
    return philox4x32(counter, (keys.seed_low, keys.seed_high))
