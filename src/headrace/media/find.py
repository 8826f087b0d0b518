"""Which processor a model's media go through."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from headrace.core.errors import ModelError

from .contract import MediaProcessor

_PROCESSORS = {"MllamaForConditionalGeneration": ("mllama", "MllamaProcessor")}
"""Architecture -> module and class. The class is made from the model's configuration and that of its preprocessor."""


def media_processor(path: Path) -> MediaProcessor | None:
    """The processor of the model in the folder ``path``; None if it reads text only. Raises ``ModelError``."""
    if not (path / "config.json").is_file():
        return None
    config = _read(path / "config.json")
    named = config.get("architectures") or [None]
    if named[0] not in _PROCESSORS:
        return None
    module, kind = _PROCESSORS[named[0]]
    preprocessor = path / "preprocessor_config.json"
    make = getattr(importlib.import_module(f".{module}", __package__), kind)
    return make(config, _read(preprocessor) if preprocessor.is_file() else {})


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise ModelError(f"{file} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ModelError(f"{file} is not a JSON object")
    return values
