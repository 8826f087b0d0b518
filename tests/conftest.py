"""Tests are of this checkout, with the core that was built for it: anything else is an error, not a slower run."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path

import pytest

from project import PACKAGE, ROOT


def pytest_configure() -> None:
    found = importlib.util.find_spec("headrace")
    where = None if found is None or found.origin is None else Path(found.origin).resolve().parent
    if where != PACKAGE:
        raise pytest.UsageError(
            f"these tests are of {PACKAGE}, but headrace is imported from {where}: run `make install` here, or put"
            f" {PACKAGE.parent} first in PYTHONPATH"
        )
    built = sorted((ROOT / "build").glob("*/_native" + sysconfig.get_config_var("EXT_SUFFIX")))
    if built and importlib.util.find_spec("headrace._native") is None:
        raise pytest.UsageError(
            f"there is a native core in {built[0].parent}, but headrace does not find it, and torch's operators would"
            f" be tested in its place: run `make install`, copy it to {PACKAGE}, or delete that folder"
        )
