"""``Backend``: what the front and whoever serves ask of the thing that runs the loop, in this process or in another."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

import msgspec

from headrace.core.errors import EngineDeadError
from headrace.core.outputs import EngineHealth, SequenceUpdate
from headrace.core.plan import FinishReason
from headrace.core.pooling import PoolingSpec
from headrace.core.request import Request

Deliver = Callable[[list[SequenceUpdate]], None]
"""Takes the news of a step. It must not block, and if it raises the engine stops."""
Fail = Callable[[EngineDeadError], None]
"""Ends everything that is under way with the error."""


class StartReport(msgspec.Struct, frozen=True):
    """What a started backend says of itself, once."""

    vocab_size: int
    max_seq_len: int
    """Prompt and output of one sequence, in tokens."""
    max_input_len: int
    eos_ids: frozenset[int]
    """End-of-sequence ids that the model's own files name."""
    phases: list[tuple[str, float]]
    """(phase, seconds) of the start, in order."""
    memory: list[tuple[str, int]]
    """(what, bytes)."""
    effective: dict[str, Any]
    """Settings as they really are, where the build step resolved them."""
    pooling: PoolingSpec = PoolingSpec()
    """What the model gives for a prompt that is encoded."""
    takes_adapters: bool = False
    """Requests may name adapters."""
    keeps_prefixes: bool = False
    """What requests have computed is kept for others."""


class Backend(Protocol):
    """A loop, its scheduler and its executor. All methods return at once, but for ``shutdown``."""

    def start(self, deliver: Deliver, fail: Fail) -> None:
        """Turns the loop on. Called once."""
        ...

    def submit(self, request: Request) -> None:
        """Hands a request over. Raises ``EngineDeadError``. A request that cannot be served raises ``RequestError``
        here or ends with it, whichever is known first."""
        ...

    def cancel(self, request_id: int) -> None:
        """Ends a request within a step; one that has ended already is left as it is. Raises ``EngineDeadError``."""
        ...

    def finish(self, request_id: int, index: int, reason: FinishReason) -> None:
        """Ends one output of a request: its end was found in the text."""
        ...

    def call(self, name: str, *args: str) -> Future[Any]:
        """Asks one of the questions of ``local.QUESTIONS`` between two steps, or has adapters loaded (``load_adapter``
        with name and path), unloaded (``unload_adapter`` with name) or listed (``adapters``). Raises
        ``EngineDeadError``, and ``RequestError`` here or in the future."""
        ...

    def health(self) -> EngineHealth:
        """How the loop is. For a backend in another process this must be asked several times a second: what is known
        of it then is never older than that."""
        ...

    def kill(self, error: EngineDeadError) -> None:
        """Gives the backend up: it is dead from here on, and what is under way ends with ``error``."""
        ...

    def shutdown(self) -> None:
        """Cancels what runs, gives everything back. May be called twice."""
        ...
