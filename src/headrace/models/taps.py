"""Hidden states of chosen layers, kept in view while the model runs as ever."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from headrace.core.errors import ConfigError
from headrace.layers.base import Layer


class Tap(Layer):
    """A layer whose last output can be looked at. Of a block that is the residual stream, before any further norm."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.output: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        self.output = self.layer(x, *rest)  # type: ignore[operator]
        return self.output


class Taps:
    """The chosen layers of a model, from shallow to deep. After ``forward`` their outputs are ``states``."""

    def __init__(self, taps: Iterable[Tap] = ()) -> None:
        self._taps = tuple(taps)

    @property
    def states(self) -> list[torch.Tensor]:
        """[T, hidden] each, of the last step. Good until the next one."""
        return [tap.output for tap in self._taps if tap.output is not None]

    def show(self, states: Sequence[torch.Tensor]) -> None:
        """Puts what a replay of a recorded step has written in view."""
        for tap, state in zip(self._taps, states, strict=True):
            tap.output = state


NO_TAPS = Taps()


def n_layers(model: Any) -> int:
    """How many layers there are to choose from."""
    return len(_layers(model))


def tap_layers(model: Any, outputs: Sequence[int], where: str, *, last: bool = False) -> Taps:
    """Makes the outputs of the layers ``outputs`` (from 0 on, in order) visible, and with ``last``, as the last state,
    what the model's head reads. Once a model.

    Raises ``ConfigError``, naming ``where`` the layers were asked for.
    """
    layers = _layers(model)
    if not outputs or list(outputs) != sorted(outputs) or not 0 <= outputs[0] <= outputs[-1] < len(layers):
        raise ConfigError(
            f"{where}: outputs of the layers {list(outputs)} are asked for; give them in order, from 0 to"
            f" {len(layers) - 1}"
        )
    taps = {index: Tap(layers[index]) for index in outputs}
    model.layers = tuple(taps.get(index, layer) for index, layer in enumerate(layers))
    chosen = [taps[index] for index in outputs]
    return Taps((*chosen, _norm(model)) if last else chosen)


def tap_norm(model: Any) -> Taps:
    """Makes the states behind the final norm visible: what the model's head reads. Once a model."""
    return Taps((_norm(model),))


def _norm(model: Any) -> Tap:
    norm = getattr(model, "norm", None)
    if not isinstance(norm, Layer):
        raise ConfigError(f"{type(model).__name__} has no final norm behind which a draft head could read")
    model.norm = Tap(norm)
    return model.norm


def _layers(model: Any) -> tuple[Layer, ...]:
    layers = getattr(model, "layers", None)
    if not isinstance(layers, tuple):
        raise ConfigError(f"{type(model).__name__} has no stack of layers whose states a draft head could read")
    return layers
