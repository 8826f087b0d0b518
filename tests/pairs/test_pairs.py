"""Every feature alone, every two of them, and all of them together, give what the plain run gives, on every family.

Generated from the capability table. Each run must also show, by the witnesses of ``get_stats``, that its features
acted.
Tokens are equal on the reference operators; where the operators promise more, logprobs are equal to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from headrace.models.registry import ARCHITECTURES, architecture_of
from headrace.weights.checkpoint import open_checkpoint
from pairs import scenarios
from pairs.cases import ENCODE_ONLY, FAMILIES, NAMES, QUANTISED, Case, all_cases, names_on, pairs_on
from pairs.equality import assert_acted, assert_equal
from pairs.scenarios import Finished, Scenario, reference, tiny_work, with_features
from parity import tiny
from tiny_text import write_tokenizer

CASES = all_cases()


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Family -> a tiny model of it."""

    @cache
    def make(family: str) -> Path:
        with torch.no_grad():
            model = tiny.make(family)
        folder = tmp_path_factory.mktemp(family)
        tiny.save(model, folder)
        write_tokenizer(folder, model.config.vocab_size)
        return folder

    return make


@cache
def _plain(folder: Path, family: str, shaped_by: frozenset[str]) -> Finished:
    return scenarios.run(folder, _built(reference(shaped_by), family), tiny_work())


def _built(scenario: Scenario, family: str) -> Scenario:
    scenario.args |= QUANTISED.get(family, ("", {}))[1]
    return scenario


def test_every_feature_of_the_table_is_turned_on_here() -> None:
    assert set(scenarios.TURN_ON) == set(NAMES)


def test_every_architecture_is_a_family_here(folder_of: Callable[[str], Path]) -> None:
    found = set()
    for family in FAMILIES:
        checkpoint = open_checkpoint(folder_of(family))
        found.add(architecture_of(checkpoint.config()))
        checkpoint.close()
    assert found == {name for name, module in ARCHITECTURES.items() if module not in ENCODE_ONLY}


def test_the_quick_half_shows_every_family_every_feature_in_company() -> None:
    assert {(case.names, case.family) for case in CASES if len(case.names) == 2 and case.family in FAMILIES} == {
        (pair, family) for family in FAMILIES for pair in pairs_on(family)
    }
    quick = [case for case in CASES if not case.is_slow and len(case.names) == 2]
    for family in FAMILIES:
        assert {name for case in quick if case.family == family for name in case.names} == set(names_on(family))


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.id, marks=[pytest.mark.slow] * case.is_slow) for case in CASES]
)
def test_equals_the_plain_run(case: Case, folder_of: Callable[[str], Path]) -> None:
    folder = folder_of(QUANTISED.get(case.family, (case.family,))[0])
    shaped_by = frozenset(filter(scenarios.changes_output, case.names))
    got = scenarios.run(folder, _built(with_features(case.names), case.family), tiny_work())
    assert_acted(got, case.names)
    assert_equal(got, _plain(folder, case.family, shaped_by))
