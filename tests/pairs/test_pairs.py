"""Every feature alone, and every two of them together, give what the plain run gives.

Generated from the capability table. Each run must also show, by the witnesses of ``get_stats``, that its features
acted.
Tokens are equal on the reference operators; where the operators promise more, logprobs are equal to the bit.
"""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path

import pytest
import torch

from headrace.core.features import FEATURES, feature
from pairs import scenarios
from pairs.scenarios import Finished, Scenario, with_features
from parity import tiny
from tiny_text import write_tokenizer

MODELS = ("llama", "gemma3-untied-window-40")
"""A dense model, and one with sliding and full layers."""
NAMES = tuple(row.name for row in FEATURES)
REFERENCE_TOLERANCE = 1e-4


def _possible(pair: tuple[str, str]) -> bool:
    return not any(other in (feature(one).excludes or {}) for one, other in itertools.permutations(pair))


SETS = [(name,) for name in NAMES] + [pair for pair in itertools.combinations(NAMES, 2) if _possible(pair)]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for variant in MODELS:
        with torch.no_grad():
            model = tiny.make(variant)
        folder = tmp_path_factory.mktemp(variant)
        tiny.save(model, folder)
        write_tokenizer(folder, model.config.vocab_size)
        found[variant] = folder
    return found


@cache
def _plain(folder: Path, shaped_by: frozenset[str]) -> Finished:
    """The plain run with the options that change the output, and with n so that every output is there."""
    scenario = with_features(shaped_by)
    scenario.n = 2
    scenario.watching = {"logprobs": 2, "prompt_logprobs": 1}
    return scenarios.run(folder, scenario)


def test_every_feature_of_the_table_is_turned_on_here() -> None:
    assert set(scenarios.TURN_ON) == set(NAMES)


@pytest.mark.parametrize("variant", MODELS)
@pytest.mark.parametrize("names", SETS, ids="+".join)
def test_equals_the_plain_run(names: tuple[str, ...], variant: str, folders: dict[str, Path]) -> None:
    folder = folders[variant]
    shaped_by = frozenset(name for name in names if _changes_output(name))
    got = scenarios.run(folder, with_features(names))
    plain = _plain(folder, shaped_by)
    for name in names:
        assert got.witnesses[feature(name).witness] > 0, f"{name} did not act: {got.witnesses}"
    _assert_equal(got, plain)


def _changes_output(name: str) -> bool:
    scenario = Scenario()
    scenarios.TURN_ON[name](scenario)
    return bool(scenario.shaping)


def _assert_equal(got: Finished, plain: Finished) -> None:
    tolerance = 0.0 if got.is_exact else REFERENCE_TOLERANCE
    for index, (ours, theirs) in enumerate(zip(got.outputs, plain.outputs, strict=True)):
        for one, other in zip(ours, theirs, strict=False):
            place = f"request {index}, output {one.index}"
            assert one.token_ids == other.token_ids, place
            assert one.text == other.text, place
            assert (one.finish_reason, one.stop_reason) == (other.finish_reason, other.stop_reason), place
            _assert_close(one.logprobs, other.logprobs, tolerance, place)
            _assert_close(one.prompt_logprobs[1:], other.prompt_logprobs[1:], tolerance, place)


def _assert_close(mine: list[dict], reference: list[dict], tolerance: float, place: str) -> None:
    """Entries of a run that did not ask for logprobs are not there."""
    for entry, expected in zip(mine, reference, strict=bool(mine)):
        worst = max(abs(entry[token].logprob - expected[token].logprob) for token in entry)
        assert worst <= tolerance, f"{place}: logprobs differ by {worst}"
