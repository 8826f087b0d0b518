"""Starts the engine's process. Light to import, so that it can be done first: torch is imported there meanwhile."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# -P: what lies in the working directory is not to be imported.
ENGINE = (sys.executable, "-P", "-m", "headrace.engine.main")
"""The command of the usual engine; the folder of the sockets and the number of the life line follow."""


@dataclass(frozen=True, slots=True)
class EngineProcess:
    """A process that waits to be told what to build. Nobody needs to tell it anything."""

    process: subprocess.Popen[bytes]
    folder: Path
    """Where the sockets meet."""
    life: socket.socket
    """Carries nothing: it ends for one side when the other is gone, whatever ended it."""
    started: float
    """Reading of the machine's monotonic clock, in seconds."""

    def discard(self) -> None:
        """Ends the process, if it has not ended, and leaves nothing of it behind."""
        self.process.kill()
        self.process.wait()
        self.life.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def spawn(command: Sequence[str] = ENGINE) -> EngineProcess:
    """Starts ``command``."""
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="headrace-"))
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            words = [*command, str(folder), str(theirs.fileno())]
            # A session of its own: Ctrl-C is for the parent, which lets requests finish.
            process = subprocess.Popen(words, pass_fds=[theirs.fileno()], start_new_session=True)
    except BaseException:
        ours.close()
        shutil.rmtree(folder)
        raise
    return EngineProcess(process, folder, ours, started)
