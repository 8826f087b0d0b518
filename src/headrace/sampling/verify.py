"""The verifier: which of the sampled tokens of a sequence are its next tokens.

Row 0 drew the token after the confirmed history, row i the one after history + drafts[:i]. Row i is therefore what
plain decoding would have drawn as long as every draft before it was what plain decoding drew. So drafts are accepted
while each equals the token drawn in its place; the draw after the last accepted draft is the target's own next token.
Nothing is drawn that plain decoding would not have drawn, at any temperature: speculation is lossless bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..core.plan import FinishReason
from .contract import NO_TOKEN


@dataclass(frozen=True, slots=True)
class EndRules:
    """When a sequence ends; fields as in ``SlotInit``."""

    stop_ids: frozenset[int]
    eos_ids: frozenset[int]
    max_length: int


class Verified(NamedTuple):
    """The outcome for one sequence; fields as in ``SeqResult``."""

    tokens: tuple[int, ...]
    """Accepted drafts, then the target's own token. Token i was drawn by the sequence's row i: so are its logprobs."""
    n_accepted: int
    finish: FinishReason | None
    stop_reason: int | None
    failed_row: int | None
    """The row, counted within the sequence, that was reached and had no token; the tokens before it stand."""


def verify(sampled: Sequence[int], drafts: Sequence[int], length: int, rules: EndRules) -> Verified:
    """``sampled``: the tokens of the 1 + len(drafts) rows; ``length``: tokens of the confirmed history."""
    if len(sampled) != len(drafts) + 1:
        raise ValueError(f"{len(drafts)} drafts need {len(drafts) + 1} sampled rows, got {len(sampled)}")
    tokens: list[int] = []
    n_accepted = 0
    for row, token in enumerate(sampled):
        if token == NO_TOKEN:
            return Verified(tuple(tokens), n_accepted, None, None, row)
        tokens.append(token)
        is_accepted = row < len(drafts) and token == drafts[row]
        n_accepted += is_accepted
        finish = _finish(token, length + len(tokens), rules)
        if finish is not None or not is_accepted:
            break
    stopped_by = tokens[-1] if finish is FinishReason.STOP and tokens[-1] not in rules.eos_ids else None
    return Verified(tuple(tokens), n_accepted, finish, stopped_by, None)


def _finish(token: int, length: int, rules: EndRules) -> FinishReason | None:
    if token in rules.stop_ids:
        return FinishReason.STOP
    return FinishReason.LENGTH if length >= rules.max_length else None
