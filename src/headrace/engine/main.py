"""The process of the usual engine: a model, computed by torch and the native core."""

from __future__ import annotations

import gc

# What is built while starting stays; looking for garbage in it takes a fifth of the time. `process` turns it on again.
gc.disable()

from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from headrace.core.config import LlmArgs  # noqa: E402
from headrace.core.phases import Phases  # noqa: E402

from .backend import StartReport  # noqa: E402
from .local import LocalBackend  # noqa: E402
from .process import main  # noqa: E402


def import_torch() -> None:
    """Half of the start of a small model, and it needs nothing to be known."""
    from . import build  # noqa: F401


def build_model(settings: dict[str, Any], phases: Phases) -> tuple[LocalBackend, StartReport]:
    """``settings`` are those of ``LlmArgs``, ``model`` being a path."""
    from .build import build_backend

    return build_backend(LlmArgs(**settings), Path(settings["model"]), phases)


if __name__ == "__main__":
    main(build_model, import_torch)
