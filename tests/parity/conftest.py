"""Reference checkpoints, made once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from headrace.eval.tiny import make, save

Reference = tuple[PreTrainedModel, Path]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny products are slower on two threads, and far slower on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reference]:
    """Variant -> its reference model and checkpoint folder."""
    made: dict[str, Reference] = {}

    def get(variant: str) -> Reference:
        if variant not in made:
            model = make(variant)
            made[variant] = model, save(model, tmp_path_factory.mktemp(variant))
        return made[variant]

    return get
