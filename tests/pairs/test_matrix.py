"""The support matrix is what the table and the record make it, and says aloud what has not been shown."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from headrace.core.errors import ConfigError
from headrace.core.features import FEATURES, resolve
from headrace.models.registry import ARCHITECTURES
from pairs import matrix, record
from pairs.cases import NAMES, PAIRS


def test_the_page_is_up_to_date_and_has_everything() -> None:
    text = matrix.PAGE.read_text(encoding="utf-8")
    assert text == matrix.page(record.read()), "run: make matrix"
    lines = text.splitlines()
    for name in (*NAMES, *ARCHITECTURES):
        assert sum(line.startswith(f"| `{name}` |") for line in lines) == 1, name
    heads = [line for line in lines if line.startswith("|  | `")]
    assert [[name for name in NAMES if f"| `{name}` |" in head] for head in heads] == [list(NAMES)] * 3


def test_what_the_record_says_is_of_cases_that_there_are() -> None:
    strange = set(record.outcomes(record.read())) - record.known()
    assert not strange, "cases that no longer are; run: tests/pairs/record.py keep"


def test_every_no_of_two_features_is_a_refusal_with_that_reason() -> None:
    for pair in itertools.combinations(NAMES, 2):
        if pair in PAIRS:
            assert resolve(pair) == set(pair)
        else:
            with pytest.raises(ConfigError) as refused:
                resolve(pair)
            assert matrix.reason_against(pair) in str(refused.value)


def test_a_cell_says_what_has_failed_and_what_has_not_run() -> None:
    cell = matrix.Cell(("a-x-greedy", "a-x-drawn"), ("a-y",))
    assert cell.show({}) == "**not run**"
    assert cell.show({"a-y": "passed", "a-x-drawn": "skipped"}) == "**not run**"
    assert cell.show({"a-x-drawn": "passed"}).startswith("[**1 of 2**](")
    both = {"a-x-greedy": "passed", "a-x-drawn": "passed"}
    assert cell.show(both) == '[Yes](../tests/pairs/test_pairs.py "a-x-greedy")'
    assert cell.show({**both, "a-y": "failed"}) == '[**fails**](../tests/pairs/test_pairs.py "a-y")'
    page = matrix.page([])
    assert "[Yes]" not in page
    assert page.count("**not run**") > len(PAIRS) + len(FEATURES)


def test_a_case_that_ran_again_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "RECORD", tmp_path / "record.json")
    monkeypatch.setattr(record, "JOURNALS", tmp_path)

    def ran(commit: str, **outcomes: str) -> None:
        entries = [{"id": f"{name}-x-drawn", "outcome": outcome} for name, outcome in outcomes.items()]
        lines = [json.dumps(entry | {"commit": commit, "date": "2001-02-03"}) + "\n" for entry in entries]
        (tmp_path / f"{commit}.jsonl").write_text("".join(lines))
        record.keep({f"{name}-x-drawn" for name in "abc"})

    ran("one", a="passed", b="failed", gone="passed")
    ran("two", b="passed", c="skipped")
    runs = record.read()
    assert [(run["commit"], run["passed"]) for run in runs] == [("one", {"x-drawn": "a"}), ("two", {"x-drawn": "b"})]
    assert record.outcomes(runs) == {"a-x-drawn": "passed", "b-x-drawn": "passed", "c-x-drawn": "skipped"}
    assert not list(tmp_path.glob("*.jsonl"))
