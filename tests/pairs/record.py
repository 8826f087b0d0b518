"""Runs cases of pairs in pieces, and keeps what came of each in ``record.json``, which the support matrix is made from.

``python tests/pairs/record.py run`` can be stopped and started again, and shared between processes (``--shard 1/2``):
what has run is in a journal (``build/pairs``) and is not run again. ``... keep`` puts the journals into the record.
Needs ``PYTHONPATH=tests``, and ``OMP_NUM_THREADS=1`` like all tests.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from pairs import encoding, few_bits, kinds
from pairs.cases import NAMES, Case, all_cases

ROOT = Path(__file__).parents[2]
RECORD = Path(__file__).with_name("record.json")
JOURNALS = ROOT / "build" / "pairs"
FILES = ("tests/pairs/test_pairs.py", "tests/pairs/test_encoding.py", "tests/pairs/test_few_bits.py")
OUTCOMES = ("passed", "failed", "skipped")
PARTS = ("pairs", "alone", "triples", "few_bits", "families")
"""In the order in which they run."""


class Recorder:
    """A plugin of pytest: picks the cases that have not run yet, and writes down how each ends."""

    def __init__(self, parts: Collection[str], shard: tuple[int, int], seconds: float, feature: str | None) -> None:
        self._parts, self._shard, self._until = parts, shard, time.monotonic() + seconds
        self._feature = feature
        self._journal, self._commit = JOURNALS / f"{shard[0]}-of-{shard[1]}.jsonl", commit()

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leaves in ``items`` what is to run."""
        done = {entry["id"] for entry in journalled()}
        called = {item: item.callspec.params for item in items if hasattr(item, "callspec")}
        cases = {item: params["case"] for item, params in called.items() if "case" in params}
        places = {item: _place(case) for item, case in cases.items() if part_of(case) in self._parts}
        if self._feature is not None:
            places = {item: place for item, place in places.items() if self._feature in cases[item].names}
        mine = _share(Counter(places.values()), *self._shard)
        kept = {item: place for item, place in places.items() if place in mine and cases[item].id not in done}
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = sorted(kept, key=kept.__getitem__)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One line in the journal for each case."""
        if report.when == "teardown" or (report.when == "setup" and report.passed):
            return
        entry = {"id": report.nodeid.partition("[")[2][:-1], "outcome": report.outcome}
        entry |= {"commit": self._commit, "date": date.today().isoformat(), "seconds": round(report.duration, 3)}
        if not report.passed:
            entry["why"] = _last_line(report)
        with self._journal.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        """Ends the run when its time is over."""
        result = yield
        if time.monotonic() > self._until:
            item.session.shouldstop = "time is over; start again to go on"
        return result


def _place(case: Case) -> tuple[int, str, str]:
    return PARTS.index(part_of(case)), case.family, case.how


def _share(groups: Counter[tuple[int, str, str]], one: int, of: int) -> set[tuple[int, str, str]]:
    """The groups of shard ``one``, counted from 1. A group stays whole, since its cases share plain runs; of each part
    every shard gets about as many cases."""
    shares: list[set[tuple[int, str, str]]] = [set() for _ in range(of)]
    loads: list[Counter[int]] = [Counter() for _ in range(of)]
    for group, count in sorted(groups.items(), key=lambda entry: (-entry[1], entry[0])):
        least = min(range(of), key=lambda shard: loads[shard][group[0]])
        shares[least].add(group)
        loads[least][group[0]] += count
    return shares[one - 1]


def _last_line(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash is not None else str(report.longrepr)).partition("\n")[0][:300]


def part_of(case: Case) -> str:
    """pairs and triples: on one family of each kind; alone: one feature, or all at once; few_bits: the same over every
    form of weights, at the level of this process; families: pairs elsewhere."""
    if case.family in few_bits.families():
        return "few_bits"
    if case.how:
        return "pairs" if len(case.names) == 2 else "triples"
    return "families" if len(case.names) == 2 else "alone"


def commit() -> str:
    """What is checked out here."""
    command = ["git", "rev-parse", "--short=9", "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def journalled() -> list[dict[str, Any]]:
    """What has run since the journals were last put into the record."""
    lines = (line for path in sorted(JOURNALS.glob("*.jsonl")) for line in path.read_text().splitlines())
    return [json.loads(line) for line in lines]


def read() -> list[dict[str, Any]]:
    """The record: runs, each with ``commit`` and ``date``, and by outcome: model -> the features of each case."""
    return json.loads(RECORD.read_text())["runs"] if RECORD.exists() else []


def ids(run: dict[str, Any], outcome: str) -> list[str]:
    """The cases of a run that ended so."""
    return [f"{names}-{model}" for model, cases in run[outcome].items() for names in cases.split()]


def outcomes(runs: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Id of a case -> its outcome when it last ran."""
    return {name: outcome for run in runs for outcome in OUTCOMES for name in ids(run, outcome)}


def keep(known: Collection[str]) -> None:
    """Puts the journals into the record. A case that ran again is in its last run only; of ids that are not ``known``,
    since their case is no more, nothing is kept."""
    entries = {entry["id"]: entry for entry in journalled() if entry["id"] in known}
    found: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for run in read():
        for outcome in OUTCOMES:
            left = [name for name in ids(run, outcome) if name not in entries and name in known]
            found[run["date"], run["commit"]][outcome] += left
    for name, entry in entries.items():
        found[entry["date"], entry["commit"]][entry["outcome"]].append(name)
    runs = [
        {"commit": at, "date": day, **{outcome: _by_model(by[outcome]) for outcome in OUTCOMES}}
        for (day, at), by in found.items()
        if any(by.values())
    ]
    RECORD.write_text(json.dumps({"runs": runs}, indent=1) + "\n")
    for path in JOURNALS.glob("*.jsonl"):
        path.unlink()


def _by_model(cases: list[str]) -> dict[str, str]:
    found: dict[str, list[str]] = defaultdict(list)
    for names, _, model in sorted(case.partition("-") for case in cases):
        found[model].append(names)
    return {model: " ".join(names) for model, names in sorted(found.items())}


def known() -> set[str]:
    """The ids of all cases."""
    levels = (case for level in few_bits.LEVELS for case in few_bits.cases(level))
    return {case.id for case in (*all_cases(), *kinds.cases(), *encoding.cases(), *levels)}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="run cases that have not run since the last keep")
    running.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    running.add_argument("--shard", default="1/1", help="1/2: the first half")
    running.add_argument("--minutes", type=float, default=1e6)
    running.add_argument("--with", dest="feature", choices=NAMES, help="a new feature: its cases alone")
    commands.add_parser("keep", help="put what has run into the record")
    args = parser.parse_args()
    if args.command == "keep":
        keep(known())
        return 0
    JOURNALS.mkdir(parents=True, exist_ok=True)
    one, _, of = args.shard.partition("/")
    recorder = Recorder(args.part, (int(one), int(of)), args.minutes * 60, args.feature)
    options = ["-q", "--tb=short", "-p", "no:cacheprovider"]
    return int(pytest.main([*(str(ROOT / file) for file in FILES), *options], [recorder]))


if __name__ == "__main__":
    sys.exit(main())
