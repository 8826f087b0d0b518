"""The extension module, if it was built and this CPU can run it; else why not."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

from headrace.core.errors import ConfigError, EngineError

INTERFACE = 7
"""Of the functions of the module; raised together with ``interface`` in native/bindings/module.cpp."""

DTYPES = {torch.float32: 0, torch.bfloat16: 1}
"""torch dtype -> the core's number for it."""
CACHE_DTYPES = {**DTYPES, torch.int8: 2, torch.float8_e4m3fn: 3}
"""The same for what a cache may be in."""


def _load() -> tuple[ModuleType | None, str]:
    try:
        module = importlib.import_module("headrace._native")
    except ImportError as error:
        return None, f"the native core was not built: {error}"
    if getattr(module, "interface", 1) != INTERFACE:
        return None, "the native core was built from other sources than the package's: install it again"
    if not module.runnable_levels():
        return None, f"this CPU has none of the levels {', '.join(module.built_levels())}"
    try:
        module.level()
    except RuntimeError as error:
        raise ConfigError(str(error)) from None
    return module, ""


_module, _reason = _load()


def native() -> ModuleType:
    """The module. Raises ``EngineError`` where there is none: ask ``is_available`` first."""
    if _module is None:
        raise EngineError(_reason)
    return _module


def is_available() -> bool:
    return _module is not None


def set_threads(n: int) -> None:
    """How many threads the core computes with; nothing to set where there is no core."""
    if _module is not None:
        _module.set_threads(n)


def reason() -> str:
    """Why the core is not available; empty when it is."""
    return _reason
