"""Every feature alone, every two of them, and all of them together, give what the plain run gives, on every family.

Generated from the capability table. Each run must also show, by the witnesses of ``get_stats``, that its features
acted.
Tokens are equal on the reference operators; where the operators promise more, logprobs are equal to the bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import pytest

from headrace.core.features import FEATURES, feature
from headrace.models.registry import ARCHITECTURES, architecture_of
from headrace.weights.checkpoint import open_checkpoint
from pairs import kinds, models, scenarios
from pairs.cases import (
    ENCODE_ONLY,
    FAMILIES,
    NAMES,
    PAIRS,
    QUANTISED,
    Case,
    Numbers,
    all_cases,
    is_for_quick,
    names_on,
    pairs_on,
    variant_of,
)
from pairs.equality import assert_acted, assert_equal
from pairs.scenarios import Finished, Scenario, reference, with_features

CASES = all_cases()
DRAWN: dict[str, Any] = {"": "half", "mixed": "half", "greedy": "none", "drawn": "all"}
"""By ``Case.how``."""


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Family -> a tiny model of it."""

    @cache
    def make(family: str) -> Path:
        return models.write_model(tmp_path_factory.mktemp(family), family)

    return make


# Cases that share a plain run stand near each other.
@lru_cache(maxsize=64)
def _plain(folder: Path, family: str, shaped_by: frozenset[str], drawn: str) -> Finished:
    return scenarios.run(folder, _built(reference(shaped_by), family), models.work_for(variant_of(family), drawn))


def _built(scenario: Scenario, family: str) -> Scenario:
    return models.built(scenario, QUANTISED[family][1] if family in QUANTISED else Numbers())


def test_every_feature_of_the_table_is_turned_on_here() -> None:
    assert set(scenarios.TURN_ON) == set(NAMES)


def test_every_architecture_is_a_family_here(folder_of: Callable[[str], Path]) -> None:
    found = set()
    for family in FAMILIES:
        checkpoint = open_checkpoint(folder_of(family))
        found.add(architecture_of(checkpoint.config()))
        checkpoint.close()
    assert found == {name for name, module in ARCHITECTURES.items() if module not in ENCODE_ONLY}


def test_every_pair_is_there_once_on_every_family_and_quick_on_one() -> None:
    pairs = Counter((case.names, case.family) for case in CASES if len(case.names) == 2)
    assert pairs == Counter((pair, family) for family in FAMILIES for pair in pairs_on(family))
    quick = [case for case in CASES if case.tier == "quick" and len(case.names) == 2]
    assert sorted(case.names for case in quick) == sorted(filter(is_for_quick, PAIRS))
    # Everything at once is quick on every family, which is all but the rivals of those that go first.
    at_once = {case.family: case.names for case in CASES if len(case.names) > 2}
    assert set(at_once) == {*FAMILIES, *QUANTISED}
    assert set().union(*at_once.values()) == set(NAMES)
    for family, names in at_once.items():
        left_out = set(names_on(family)).difference(names, ("windows",))
        assert all(feature(name).excludes or _is_excluded(name) for name in left_out)


def _is_excluded(name: str) -> bool:
    return any(name in (row.excludes or {}) for row in FEATURES)


def test_the_slow_sample_turns_until_every_case_has_had_its_day() -> None:
    days = [{case.id for case in all_cases(turn) if case.tier != "full"} for turn in range(3 * len(FAMILIES))]
    assert set.union(*days) == {case.id for case in CASES}
    assert days[0] != days[1]


def test_the_kinds_have_every_pair_twice_and_their_triples() -> None:
    cases = kinds.cases()
    assert len({case.id for case in (*CASES, *cases)}) == len(CASES) + len(cases)
    for family in kinds.KINDS.values():
        mine = Counter(case.names for case in cases if case.family == family)
        assert {names for names in mine if len(names) == 2} == set(pairs_on(family))
        assert sum(len(names) == 3 for names in mine) == kinds.N_TRIPLES
        once = {names for names, count in mine.items() if count == 1}
        assert all(set(names) & (kinds.DRAWING | kinds.SEARCHING) or set(names) >= kinds.ENDS_EARLY for names in once)
    slow = [{case.id for case in kinds.cases(turn) if case.tier == "slow"} for turn in (0, 1, kinds.TURNS - 1)]
    assert sum(map(len, slow)) == len(set.union(*slow))
    assert {len(some) for some in slow} <= {len(cases) // kinds.TURNS, len(cases) // kinds.TURNS + 1}
    assert kinds.cases(kinds.TURNS) == kinds.cases(0)


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.id, marks=[getattr(pytest.mark, case.tier)]) for case in (*CASES, *kinds.cases())],
)
def test_equals_the_plain_run(case: Case, folder_of: Callable[[str], Path]) -> None:
    folder, drawn = folder_of(variant_of(case.family)), DRAWN[case.how]
    plain = _plain(folder, case.family, frozenset(filter(scenarios.changes_output, case.names)), drawn)
    scenario = _built(with_features(case.names), case.family)
    if case.how:
        scenario.args["max_batch_size"] = 8
    got = scenarios.run(folder, scenario, models.work_for(variant_of(case.family), drawn), plain)
    # Among all features at once outputs are short, and it is chance whether memory runs out; the pairs make it.
    assert_acted(got, case.names if len(case.names) <= 3 else set(case.names) - {"preemption"})
    assert_equal(got, plain)
