"""Every exception headrace raises on purpose.

HeadraceError
├── ConfigError          a setting is unknown, out of range, or does not go with another      (construction)
├── ModelError           no such model, unknown architecture
│   └── CheckpointError  a file is damaged or does not match: names file, tensor, shapes
├── RequestError         something in one request is wrong; only that request fails
│   ├── PromptTooLongError
│   ├── QueueFullError   the waiting queue is at its limit; try again later
│   └── CallbackError    code that the user passed in raised; carries its traceback
└── EngineError          a broken invariant or a dead worker: the engine stops, all requests fail
    ├── IntegrityError
    └── EngineDeadError  raised for every later call
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HeadraceError(Exception):
    """Base of all errors raised by headrace."""


class ConfigError(HeadraceError, ValueError):
    """A setting is unknown, out of range or in conflict: the message says what is allowed and what to do."""


class ModelError(HeadraceError):
    """The model cannot be found or its architecture is not known."""


class CheckpointError(ModelError):
    """A checkpoint file is damaged or mismatching. The message names file, tensor, expected and found."""


class RequestError(HeadraceError, ValueError):
    """One request is wrong. No other request is affected. ``param`` names the field, where one is to blame."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class PromptTooLongError(RequestError):
    """Prompt and requested output do not fit the sequence limit or the cache."""


class QueueFullError(RequestError):
    """The waiting queue is at its limit."""


class CallbackError(RequestError):
    """A callback that came with the request raised."""


class EngineError(HeadraceError):
    """A broken invariant or a dead worker."""


class IntegrityError(EngineError):
    """The integrity check found a lease, block or slot out of balance."""


class EngineDeadError(EngineError):
    """The engine has stopped after an error or a shutdown."""


def did_you_mean(given: str, allowed: Iterable[str], cutoff: float = 0.6) -> str:
    """`` Did you mean 'x'?`` when one of ``allowed`` is close to ``given``, else an empty string.

    ``cutoff``: how close, 1 is equal.
    """
    # Comparing takes time; nothing allowed is that long.
    close = difflib.get_close_matches(given[:200], list(allowed), n=1, cutoff=cutoff)
    return f" Did you mean {close[0]!r}?" if close else ""
