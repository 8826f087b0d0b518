"""Records the native calls of a forward pass. What torch computes in it would be missing from a replay."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .core import native
from .workspace import Workspace, within


class Recorder:
    """A tape, and the memory its calls work in: enough for ``size`` tokens."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._tape = native().Tape()
        self._workspace = Workspace()

    @contextmanager
    def recording(self, n_tokens: int) -> Iterator[None]:
        """What native operators do in here is done, and kept."""
        self._tape.begin(n_tokens)
        try:
            with within(self._workspace.room_for(self.size, n_tokens)):
                yield
        finally:
            self._tape.end()

    def replay(self, n_tokens: int) -> None:
        """All of it again, for the tokens that lie in the same places now."""
        self._tape.replay(n_tokens)
