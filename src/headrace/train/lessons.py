"""What a head learns from: conversations, and what the model itself thinks at each of their tokens."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from headrace.core.errors import ConfigError
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

    def cut(self, n: int) -> Conversation:
        """Its first ``n`` tokens at most."""
        return replace(self, tokens=self.tokens[:n])


@dataclass(frozen=True, slots=True, eq=False)
class Recorded(Conversation):
    """A conversation that an engine has run over, and kept the states of (``SaveHiddenStatesDecodingConfig``)."""

    layers: tuple[int, ...] = ()
    """Whose outputs ``states`` are."""
    states: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """[S, n_states]"""
    last: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """[S, hidden]"""


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
    """The model, run over conversations. ``mode``: one of ``eval.text_model.MODES``; ``of_layers``: states are those of
    the layers that an EAGLE-3 head reads, else what the model's head reads."""

    def __init__(self, path: Path, mode: str, max_tokens: int, *, of_layers: bool) -> None:
        self._model = TextModel(path, MODES[mode], max_tokens)
        self.layers = tuple(self._model.usual_layers()) if of_layers else ()
        self._taps = self._model.tap() if of_layers else None

    def lesson(self, one: Conversation) -> Lesson:
        """Raises ``ConfigError`` for states that are not those a head reads."""
        ids, probs = [], []
        if isinstance(one, Recorded):
            last, states = self._recalled(one)
        else:
            last = self._model.hidden(one.tokens)
            states = last if self._taps is None else torch.cat(self._taps.states, 1)
        for first in range(0, len(last), _ROWS):
            top = self._model.head(last[first : first + _ROWS]).log_softmax(-1).topk(TOP, dim=1)
            ids.append(top.indices.int())
            probs.append(top.values.exp())
        tokens, kept = torch.tensor(one.tokens), (states.to(torch.bfloat16), last.to(torch.bfloat16))
        # Copies out of inference mode: training may look at them.
        return Lesson(
            tokens, one.n_prompt, one.temperature, kept[0].clone(), kept[1].clone(), torch.cat(ids), torch.cat(probs)
        )

    def _recalled(self, one: Recorded) -> tuple[torch.Tensor, torch.Tensor]:
        """The last states and those of the layers, as ``forward`` would give them."""
        n, last = len(one.tokens), one.last[: len(one.tokens)]
        if (self.layers and one.layers != self.layers) or last.shape != (n, self._model.hidden_size):
            raise ConfigError(
                f"--data: states of the layers {list(one.layers)}, {one.last.shape[-1]} wide; a head for this model"
                f" reads {list(self.layers)}, {self._model.hidden_size} wide"
            )
        return last.to(self._model.dtype), one.states[:n] if self.layers else last
