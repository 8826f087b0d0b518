"""Fixtures: a tiny model on disk, and a server over it that all tests of a run share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serving_rig import CONFIG, TEMPLATE, VOCAB, Running, served

from tiny_text import write_tokenizer


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write_tokenizer(folder, VOCAB, TEMPLATE)
    return folder


@pytest.fixture(scope="session")
def tiny(folder: Path) -> Iterator[Running]:
    with served(folder, max_batch_size=8) as running:
        yield running
        running.idle()


@pytest.fixture(scope="session")
def serve(folder: Path) -> Callable[..., Any]:
    """``with serve(options, **engine) as running``: a server of one's own."""
    return lambda options=None, **engine: served(folder, options, **engine)
