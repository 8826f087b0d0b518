"""Records the native calls of a forward pass. What torch computes in it would be missing from a replay."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .core import native
from .workspace import Workspace, within


class Recorder:
    """A tape, and the memory its calls work in: enough for ``size`` tokens."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.missed: str | None = None
        """The first thing that torch computed while something was recorded: a replay would not do it."""
        self._tape = native().Tape()
        self._workspace = Workspace()

    @contextmanager
    def recording(self, n_tokens: int) -> Iterator[None]:
        """What native operators do in here is done, and kept."""
        self._tape.begin(n_tokens)
        try:
            with within(self._workspace.room_for(self.size, n_tokens)), _TorchCalls() as calls:
                yield
            self.missed = calls.first
        finally:
            self._tape.end()

    def replay(self, n_tokens: int) -> None:
        """All of it again, for the tokens that lie in the same places now."""
        self._tape.replay(n_tokens)

    def replay_timed(self, n_tokens: int) -> list[tuple[str, int]]:
        """The same, and the kind of each call with the nanoseconds that it took."""
        times: list[tuple[str, int]] = self._tape.replay_timed(n_tokens)
        return times


class _TorchCalls(TorchDispatchMode):
    """Lets torch do what it is asked to, and notes the first call that does more than look at memory in another way."""

    first: str | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled here, and saying so to the compiler would import it: a second of the first decode.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.first is None and (func._schema.is_mutable or not _same_memory(result, args)):
            self.first = str(func)
        return result


def _same_memory(result: Any, args: Any) -> bool:
    one, other = result, args[0] if args else None
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return False
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
