"""`headrace serve` over an engine process that can be made to stick: run by the tests as a program.

odd_engine.py serve ...         the command, its engine being this file
odd_engine.py FOLDER NUMBER     that engine; SIGUSR1 makes its worker never come back, SIGUSR2 its loop
"""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

from headrace.cli.main import app
from headrace.core.phases import Phases
from headrace.engine.main import build_model
from headrace.engine.process import main
from headrace.engine.spawn import spawn

FOREVER = threading.Event()


def build(settings: dict[str, Any], phases: Phases) -> Any:
    backend, report = build_model(settings, phases)
    worker, recorder = backend.executor._worker, backend._stats
    execute, observe = worker.execute, recorder.observe
    stuck = {"worker": False, "loop": False}

    def slow(*of_step: Any) -> Any:
        FOREVER.wait(None if stuck["worker"] else 0.01)
        return execute(*of_step)

    def seen(plan: Any, result: Any) -> None:
        if stuck["loop"]:
            FOREVER.wait()
        observe(plan, result)

    worker.execute, recorder.observe = slow, seen
    signal.signal(signal.SIGUSR1, lambda *_: stuck.update(worker=True))
    signal.signal(signal.SIGUSR2, lambda *_: stuck.update(loop=True))
    return backend, report


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        app(obj=spawn((sys.executable, __file__)))
    else:
        main(build)
