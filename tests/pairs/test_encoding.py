"""Every feature that can act on a model that only encodes leaves its bits alone, on every such architecture."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from headrace import LLM, ConfigError, NGramDecodingConfig
from headrace.core.features import LACKS, feature
from headrace.eval import tiny
from headrace.eval.tiny_variants import LABELLED
from headrace.models.registry import ARCHITECTURES
from pairs import encoding
from pairs.cases import ENCODE_ONLY, NAMES, Case
from pairs.encoding import Encoded
from pairs.equality import REFERENCE_TOLERANCE
from pairs.scenarios import changes_output


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Family -> a tiny model of it."""

    @cache
    def make(family: str) -> Path:
        with torch.no_grad():
            return tiny.save(tiny.make(family, **encoding.CHANGES.get(family, {})), tmp_path_factory.mktemp(family))

    return make


@cache
def _plain(folder: Path, family: str, shaped_by: str | None) -> Encoded:
    return encoding.run(folder, family, encoding.plain(family, shaped_by))


def test_every_architecture_that_only_encodes_is_here() -> None:
    found = {tiny.architecture(family) for family in LABELLED}
    assert found == {name for name, module in ARCHITECTURES.items() if module in ENCODE_ONLY}


@pytest.mark.parametrize("family", ["qwen2-labels", "qwen2-process-reward", "bert"])
def test_what_cannot_act_is_said_and_refused(family: str, folder_of: Callable[[str], Path]) -> None:
    with LLM(folder_of(family), skip_tokenizer_init=True, max_num_tokens=64) as llm:
        absent = llm.effective_config["absent_features"]
    assert set(absent) == set(NAMES).difference(encoding.names_on(family))
    assert absent["ngram"] == LACKS["output"]
    assert absent.get("kv_reuse") == {"bert": LACKS["past"], "qwen2-process-reward": LACKS["prefix"]}.get(family)
    for name, value in {
        "speculative_config": NGramDecodingConfig(max_draft_len=2),
        "batched_logits_processor": lambda *_: None,
    }.items():
        with pytest.raises(ConfigError, match=f"{name}.*leave {name} out"):
            LLM(folder_of(family), skip_tokenizer_init=True, **{name: value})


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.id, marks=[getattr(pytest.mark, case.tier)]) for case in encoding.cases()]
)
def test_encodes_as_alone(case: Case, folder_of: Callable[[str], Path]) -> None:
    (name,), folder = case.names, folder_of(case.family)
    plain = _plain(folder, case.family, name if changes_output(name) else None)
    got = encoding.run(folder, case.family, encoding.built(case.family, name))
    assert got.witnesses[feature(name).witness] > 0, f"{name} did not act: {got.witnesses}"
    for index, (mine, reference) in enumerate(zip(got.rows, plain.rows, strict=True)):
        assert mine.shape == reference.shape
        worst = np.abs(mine - reference).max()
        assert worst <= (0.0 if got.is_exact else REFERENCE_TOLERANCE), f"{index}: differs by {worst}"
