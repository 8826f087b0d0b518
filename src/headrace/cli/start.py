"""Starting a model for a command: what happens is said on stderr while it happens, with its time."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from headrace.cli import console
from headrace.core.clock import Clock, SystemClock
from headrace.core.phases import Phases

if TYPE_CHECKING:
    from headrace.core.config import LlmArgs
    from headrace.engine.engine import Engine
    from headrace.engine.spawn import EngineProcess
    from headrace.llm import LLM


class _Notes(logging.Handler):
    """Shows the engine's own log on stderr: a note dim, a warning plain."""

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if record.levelno >= logging.WARNING:
            console.err().print(f"{record.levelname.lower()}: {text}", style="yellow", markup=False)
        else:
            console.note(text)


def show_log(quiet: bool) -> None:
    """Sends the engine's log to stderr: warnings only when ``quiet``."""
    log = logging.getLogger("headrace")
    log.handlers = [_Notes()]
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    log.propagate = False


@contextmanager
def started(model: str, engine: Mapping[str, Any], *, quiet: bool, clock: Clock | None = None) -> Iterator[LLM]:
    """The model, ready to generate, and shut down at the end. Raises what ``LLM`` raises."""
    clock = clock or SystemClock()
    show_log(quiet)
    phases = Phases(clock)
    begin = clock.now()
    # First: it tells OpenMP how to wait, which torch reads when it is imported.
    from headrace.llm import LLM

    with phases.time("import torch"):
        import torch  # noqa: F401  half of the start of a small model: it gets a line of its own

    with LLM(model, **engine) as llm:
        gc.enable()
        _say_ready(model, clock.now() - begin, quiet)
        yield llm


@contextmanager
def launched(
    model: str,
    engine: Mapping[str, Any],
    heartbeat_limit: float,
    waiting: EngineProcess | None,
    *,
    meanwhile: Callable[[], None],
    quiet: bool,
    clock: Clock,
) -> Iterator[tuple[Engine, LlmArgs]]:
    """As ``started``, but in a process of its own: what serves does not share its interpreter with what computes.

    ``waiting``: that process, if it has been started before. ``meanwhile``: is called while it builds the engine.
    """
    show_log(quiet)
    begin = clock.now()
    from headrace.core.config import LlmArgs
    from headrace.engine.launch import launch_engine

    args = LlmArgs.from_call(model, dict(engine))
    running = launch_engine(args, heartbeat_limit, waiting, meanwhile=meanwhile)
    gc.enable()
    try:
        _say_ready(model, clock.now() - begin, quiet)
        yield running, args
    finally:
        running.shutdown()


def _say_ready(model: str, seconds: float, quiet: bool) -> None:
    if not quiet:
        console.note(f"{model} is ready after {seconds:.2f} s")


def is_terminal() -> bool:
    """True when a person looks at stdout."""
    return sys.stdout.isatty()
