"""How far a model's answers move when its weights are kept in another form: against the run in fp32, on a text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .text_model import MODES, Mode, TextModel


@dataclass(frozen=True, slots=True)
class Divergence:
    """Of one mode from fp32, over all positions of the text."""

    mode: str
    mean_kl: float
    """Mean over positions of KL(fp32 || mode), in nats."""
    p99_kl: float
    same_top: float
    """Share of positions whose likeliest token is the same."""
    perplexity: float
    """Of the text's own tokens."""
    n_bytes: int
    """Of weights in memory."""


def pieces(tokens: Sequence[int], length: int, total: int) -> list[list[int]]:
    """The first ``total`` tokens in pieces of ``length``; a rest of one token has nothing to say."""
    cut = list(tokens[:total])
    parts = [cut[first : first + length] for first in range(0, len(cut), length)]
    return [part for part in parts if len(part) > 1]


def measure(
    path: Path, modes: Iterable[Mode], parts: Sequence[Sequence[int]], on_mode: Callable[[str], None] = lambda _: None
) -> list[Divergence]:
    """Each of the modes over ``parts`` of a text, float32 first. Both models of a comparison are in memory."""
    longest = max(map(len, parts))
    on_mode("float32")
    exact = TextModel(path, MODES["float32"], longest)
    found = [_compare("float32", exact, exact, parts)]
    for mode in modes:
        on_mode(mode.name)
        found.append(_compare(mode.name, exact, TextModel(path, mode, longest), parts))
    return found


def _compare(mode: str, exact: TextModel, other: TextModel, parts: Sequence[Sequence[int]]) -> Divergence:
    divergences, same, likelihoods = [], [], []
    for part in parts:
        row = 0
        for wanted, got in zip(exact.logprobs(part), other.logprobs(part), strict=True):
            divergences.append(kl(wanted, got))
            same.append(wanted.argmax(1) == got.argmax(1))
            following = torch.tensor(part[row + 1 : row + 1 + len(got)])
            likelihoods.append(got[: len(following)].gather(1, following.unsqueeze(1)).squeeze(1))
            row += len(got)
    kls = torch.cat(divergences)
    return Divergence(
        mode,
        mean_kl=kls.mean().item(),
        p99_kl=kls.quantile(0.99).item(),
        same_top=torch.cat(same).double().mean().item(),
        perplexity=math.exp(-torch.cat(likelihoods).double().mean().item()),
        n_bytes=other.n_bytes,
    )


def kl(wanted: torch.Tensor, got: torch.Tensor) -> torch.Tensor:
    """KL(wanted || got) of rows of log probabilities, in double; never below zero but by rounding."""
    wanted, got = wanted.double(), got.double()
    return (wanted.exp() * (wanted - got)).sum(1)
