"""What a head learns from: conversations, and what the model itself thinks at each of their tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from headrace.eval.text_model import MODES, TextModel

TOP = 16
"""Likeliest tokens of the model that are kept for each position."""
_ROWS = 64


@dataclass(frozen=True, slots=True)
class Conversation:
    """Tokens, of which the first ``n_prompt`` were given."""

    tokens: tuple[int, ...]
    n_prompt: int
    temperature: float = 0.0
    """Of the answer."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """A conversation with the model's view of it; position t is after token t."""

    tokens: torch.Tensor
    """[S] int64."""
    n_prompt: int
    temperature: float
    states: torch.Tensor
    """[S, n_states] bfloat16: outputs of the tapped layers, side by side."""
    last: torch.Tensor
    """[S, hidden] bfloat16: what the model's head reads."""
    top_ids: torch.Tensor
    """[S, TOP] int32, likeliest first."""
    top_probs: torch.Tensor
    """[S, TOP] fp32."""


class Teacher:
    """The model, run over conversations. ``mode``: one of ``eval.text_model.MODES``."""

    def __init__(self, path: Path, mode: str, max_tokens: int) -> None:
        self._model = TextModel(path, MODES[mode], max_tokens)
        self._taps = self._model.tap()

    def lesson(self, one: Conversation) -> Lesson:
        ids, probs = [], []
        last = self._model.hidden(one.tokens)
        for first in range(0, len(last), _ROWS):
            top = self._model.head(last[first : first + _ROWS]).log_softmax(-1).topk(TOP, dim=1)
            ids.append(top.indices.int())
            probs.append(top.values.exp())
        states = torch.cat(self._taps.states, 1).to(torch.bfloat16)
        tokens, kept = torch.tensor(one.tokens), last.to(torch.bfloat16)
        # Copies out of inference mode: training may look at them.
        return Lesson(
            tokens, one.n_prompt, one.temperature, states.clone(), kept.clone(), torch.cat(ids), torch.cat(probs)
        )
