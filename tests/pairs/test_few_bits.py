"""Features leave every bit alone over weights, keys and values of few bits, at every level of the core."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path

import pytest

from headrace.ops.native import core
from headrace.weights.gguf_blocks import SUPPORTED
from pairs import few_bits, models, scenarios
from pairs.cases import NAMES, Case, names_on
from pairs.equality import assert_acted, assert_equal
from pairs.scenarios import Finished, reference, with_features
from weights.forms import FORMS

LEVEL = few_bits.level()
CASES = few_bits.cases(LEVEL) if LEVEL in few_bits.LEVELS else []


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Form -> its model."""

    @cache
    def plain(variant: str, changes: tuple) -> Path:
        return models.write_model(tmp_path_factory.mktemp(variant), variant, **dict(changes))

    @cache
    def make(form: str) -> Path:
        kept = few_bits.FORMS[form]
        folder = plain(kept.variant, tuple(kept.changes.items()))
        if form in ("int8", "int4"):
            return folder
        return models.write_form(folder, tmp_path_factory.mktemp(form) / form, form, kept.variant, kept.changes)

    return make


def built(names: tuple[str, ...], family: str, folder: Path, make: Callable) -> scenarios.Scenario:
    """``make``: the scenario out of names of features."""
    scenario = models.built(make(names), few_bits.families()[family][1])
    scenario.args["tokenizer"] = folder
    return scenario


# Cases that share a plain run stand near each other.
@lru_cache(maxsize=64)
def _plain(folder: Path, family: str, variant: str, shaped_by: frozenset[str]) -> Finished:
    scenario = built(tuple(sorted(shaped_by)), family, folder, reference)
    return scenarios.run(folder, scenario, models.work_for(variant))


def test_every_form_that_is_read_is_here() -> None:
    in_blocks = {f"{models.GGUF}{kind}" for kind in SUPPORTED if kind not in ("F32", "F16", "BF16")}
    assert set(few_bits.FORMS) == {*FORMS, *in_blocks, "int8", "int4", "mxfp4-experts"}


def test_every_feature_meets_every_form_and_every_way_of_the_rest_at_every_level() -> None:
    found = {case.id: case for level in few_bits.LEVELS for case in few_bits.cases(level)}.values()
    families = few_bits.families()
    at_once = [families[case.family] for case in found if len(case.names) > 1]
    ways = Counter((form, numbers.dtype, numbers.kv) for form, numbers in at_once)
    assert ways == Counter((form, *way) for form in few_bits.FORMS for way in few_bits.WAYS)
    alone = [(case.names[0], *families[case.family], case.family.rpartition("-")[2]) for case in found
             if len(case.names) == 1]  # fmt: skip
    assert Counter((name, form) for name, form, _, _ in alone) == Counter(
        (name, form) for form, kept in few_bits.FORMS.items() for name in names_on(kept.variant)
    )
    met = {(name, numbers.dtype, numbers.kv, level) for name, _, numbers, level in alone}
    assert met == {(name, *way, level) for name in NAMES for way in few_bits.WAYS for level in few_bits.LEVELS}


@pytest.mark.parametrize("level", few_bits.LEVELS)
def test_the_sample_turns_until_every_case_has_had_its_day(level: str) -> None:
    days = [{case.id for case in few_bits.cases(level, day) if case.tier == "slow"} for day in range(few_bits.TURNS)]
    assert sum(map(len, days)) == len(set.union(*days)) == len(few_bits.cases(level))


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.id, marks=[getattr(pytest.mark, case.tier)]) for case in CASES]
)
def test_equals_the_plain_run(case: Case, folder_of: Callable[[str], Path]) -> None:
    form = few_bits.families()[case.family][0]
    variant, folder = few_bits.FORMS[form].variant, folder_of(form)
    plain = _plain(folder, case.family, variant, frozenset(filter(scenarios.changes_output, case.names)))
    got = scenarios.run(folder, built(case.names, case.family, folder, with_features), models.work_for(variant), plain)
    assert got.is_exact, "an operator of the core is missing"
    # Among all features at once outputs are short, and it is chance whether memory runs out; the pairs make it.
    assert_acted(got, case.names if len(case.names) == 1 else set(case.names) - {"preemption"})
    assert_equal(got, plain)


@pytest.mark.slow
@pytest.mark.parametrize("level", core.native().runnable_levels() if core.is_available() else [])
def test_the_sample_of_every_other_level_passes(level: str) -> None:
    if os.environ.get("HEADRACE_ISA") or level == LEVEL or level not in few_bits.LEVELS:
        pytest.skip(f"this process runs at {LEVEL}")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "slow", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        command, env={**os.environ, "HEADRACE_ISA": level}, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
