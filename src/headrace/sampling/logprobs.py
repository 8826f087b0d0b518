"""Log probabilities of rows, from the numerics of the draw."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.plan import TokenLogprobs
from .filters import Kept, ordered_prefix
from .numerics import log_mass, masses, relative_logprobs


class Wanted(NamedTuple):
    """Of which tokens logprobs are wanted, for R rows."""

    tokens: np.ndarray
    """int [R]: the token whose logprob and rank are wanted."""
    n_top: np.ndarray
    """int [R]: how many of the most likely tokens beside it, as far as there are any with a probability."""


def of_logits(logits: Tensor, wanted: Wanted) -> list[TokenLogprobs]:
    """Log-softmax of float32 [R, V]: no NaN, no +inf, not all of a row -inf. Tokens rank by logit, ties by lower id."""
    top = logits.amax(-1, keepdim=True)
    log_total = log_mass(masses(logits - top).sum(-1, keepdim=True))
    own = logits.gather(-1, torch.from_numpy(wanted.tokens)[:, None].to(logits.device))
    ranks = _ranks(logits, own, wanted.tokens)
    values, ids = ordered_prefix(logits, max(1, int(wanted.n_top.max())))
    n_top = np.minimum(wanted.n_top, (values > -torch.inf).sum(-1).cpu().numpy())
    return _entries(
        Wanted(wanted.tokens, n_top),
        relative_logprobs(own, top, log_total),
        ranks,
        ids,
        relative_logprobs(values, top, log_total),
    )


def of_kept(kept: Kept, wanted: Wanted) -> list[TokenLogprobs]:
    """Log probabilities among the kept tokens alone, the others having none; the tokens wanted are kept ones."""
    total = log_mass(kept.mass.sum(-1, keepdim=True))
    logprobs = relative_logprobs(kept.scaled, torch.zeros_like(kept.scaled[:, :1]), total)
    is_own = kept.ids == torch.from_numpy(wanted.tokens)[:, None].to(kept.ids.device)
    column = is_own.to(torch.int8).argmax(-1, keepdim=True)
    n_top = np.minimum(wanted.n_top, kept.is_kept.sum(-1).cpu().numpy())
    own = logprobs.gather(-1, column)
    return _entries(Wanted(wanted.tokens, n_top), own, column.squeeze(-1) + 1, kept.ids, logprobs)


def _ranks(logits: Tensor, own: Tensor, tokens: np.ndarray) -> Tensor:
    """1 + the number of tokens before ``tokens`` in order: int64 [R]."""
    ids = torch.arange(logits.shape[-1], device=logits.device)
    is_lower_id = ids[None, :] < torch.from_numpy(tokens)[:, None].to(logits.device)
    return ((logits > own) | ((logits == own) & is_lower_id)).sum(-1) + 1


def _entries(wanted: Wanted, own: Tensor, ranks: Tensor, ids: Tensor, logprobs: Tensor) -> list[TokenLogprobs]:
    """``own`` [R, 1]; ``ids`` and ``logprobs`` [R, N] in order of rank."""
    columns = zip(
        wanted.tokens.tolist(),
        wanted.n_top.tolist(),
        own.squeeze(-1).tolist(),
        ranks.tolist(),
        ids.tolist(),
        logprobs.tolist(),
        strict=True,
    )
    return [
        TokenLogprobs(token, logprob, rank, tuple(top_ids[:n_top]), tuple(top_logprobs[:n_top]))
        for token, n_top, logprob, rank, top_ids, top_logprobs in columns
    ]
