"""Where the command begins: what takes longest is begun first.

Importing torch is half of the start of a small model. The engine of a server has a process of its own anyway, so that
one is started before this one has imported anything, and is told later what to build.
"""

from __future__ import annotations

import gc
import sys

from headrace.engine import spawn


def main() -> None:
    """The ``headrace`` command."""
    # What is made until the model is ready is made to stay; ``cli.start`` turns it on again.
    gc.disable()
    words = sys.argv[1:]
    engine = spawn.spawn() if _starts_engine(words) else None
    try:
        from headrace.cli.main import app

        app(obj=engine)
    finally:
        if engine is not None:
            engine.discard()


def _starts_engine(words: list[str]) -> bool:
    command = next((word for word in words if not word.startswith("-")), None)
    return command == "serve" and not {"-h", "--help"} & set(words)


if __name__ == "__main__":
    main()
