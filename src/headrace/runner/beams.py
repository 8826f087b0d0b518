"""What the sampled row of a beam gives: candidates in place of a token, with what the request may see of each."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from headrace.core.errors import RequestError
from headrace.core.plan import Candidate, SlotInit, TokenLogprobs
from headrace.sampling import Sampler


def candidates_of(
    init: SlotInit, found: TokenLogprobs, logits: Tensor, sampler: Sampler
) -> tuple[Candidate, ...] | RequestError:
    """Candidates of one row, or why there are none.

    Args:
        found: the processed logprobs of the row's most likely tokens.
        logits: float32 [V], the model's own.
    """
    sampling = init.sampling
    n = init.n_candidates
    ids, values = found.top_ids[:n], found.top_logprobs[:n]
    shown: list[TokenLogprobs | None] = [None] * len(ids)
    if sampling.logprobs is not None and sampling.logprobs_mode == "processed":
        tops = found.top_ids[: sampling.logprobs], found.top_logprobs[: sampling.logprobs]
        shown = [TokenLogprobs(*pair, rank, *tops) for rank, pair in enumerate(zip(ids, values, strict=True), 1)]
    elif sampling.logprobs is not None:
        # Any of them may be chosen, and then the logits are gone.
        rows = logits.expand(len(ids), -1)
        try:
            shown = list(sampler.prompt_logprobs(rows.contiguous(), np.array(ids, np.int64), sampling.logprobs))
        except RequestError as error:
            return error
    row = logits.numpy().copy() if sampling.return_generation_logits else None
    return tuple(Candidate(*parts, row) for parts in zip(ids, values, shown, strict=True))
