"""Runs cases of pairs in pieces, and keeps what came of each: ``record.json``, which the support matrix is made from.

``python tests/pairs/record.py run`` can be stopped and started again, and shared between processes (``--shard 1/2``):
what has run is in a journal (``build/pairs``) and is not run again. ``... keep`` puts the journals into the record.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RECORD = Path(__file__).with_name("record.json")
JOURNALS = ROOT / "build" / "pairs"
TEST = "tests/pairs/test_pairs.py::test_equals_the_plain_run"
OUTCOMES = ("passed", "failed", "skipped")


class Recorder:
    """A plugin of pytest: picks the cases that have not run yet, and writes down how each ends."""

    def __init__(self, part: str, shard: tuple[int, int], seconds: float) -> None:
        self._part, self._shard, self._until = part, shard, time.monotonic() + seconds
        self._journal, self._commit = JOURNALS / f"{shard[0]}-of-{shard[1]}.jsonl", commit()

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leaves in ``items`` what is to run."""
        done = {entry["id"] for entry in journalled()}
        cases = {item: item.callspec.params["case"] for item in items if hasattr(item, "callspec")}
        # A family's cases share its plain runs: a shard has whole families, as far as there are enough.
        wanted = [item for item, case in cases.items() if self._part in ("all", part_of(case))]
        families = sorted({(cases[item].family, cases[item].how) for item in wanted})
        mine = set(families[self._shard[0] - 1 :: self._shard[1]])
        kept = [item for item in wanted if cases[item].id not in done and (cases[item].family, cases[item].how) in mine]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = sorted(kept, key=lambda item: (cases[item].family, cases[item].how))

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


def _last_line(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash is not None else str(report.longrepr)).partition("\n")[0][:300]


def part_of(case: Any) -> str:
    """kinds: pairs and triples on one family of each kind; alone: one feature; pairs: the rest."""
    return "kinds" if case.how else "alone" if len(case.names) == 1 else "pairs"


def commit() -> str:
    """What is checked out here."""
    command = ["git", "rev-parse", "--short=9", "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def journalled() -> list[dict[str, Any]]:
    """What has run since the journals were last put into the record."""
    lines = (line for path in sorted(JOURNALS.glob("*.jsonl")) for line in path.read_text().splitlines())
    return [json.loads(line) for line in lines]


def read() -> list[dict[str, Any]]:
    """The record: runs, each with its ``commit``, its ``date``, and lists of ids by outcome."""
    return json.loads(RECORD.read_text())["runs"] if RECORD.exists() else []


def outcomes(runs: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Id of a case -> its outcome when it last ran."""
    return {name: outcome for run in runs for outcome in OUTCOMES for name in run[outcome]}


def keep() -> None:
    """Puts the journals into the record. A case that ran again is in its last run only."""
    entries = {entry["id"]: entry for entry in journalled()}
    runs = [
        run | {outcome: [name for name in run[outcome] if name not in entries] for outcome in OUTCOMES}
        for run in read()
    ]
    found: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, entry in sorted(entries.items()):
        found[entry["date"], entry["commit"]][entry["outcome"]].append(name)
    for (day, at), by in sorted(found.items()):
        runs.append({"test": TEST, "commit": at, "date": day, **{outcome: by[outcome] for outcome in OUTCOMES}})
    runs = [run for run in runs if any(run[outcome] for outcome in OUTCOMES)]
    RECORD.write_text(json.dumps({"runs": runs}, indent=1) + "\n")
    for path in JOURNALS.glob("*.jsonl"):
        path.unlink()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="run cases that have not run since the last keep")
    running.add_argument("--part", choices=("kinds", "alone", "pairs", "all"), default="all")
    running.add_argument("--shard", default="1/1", help="1/2: the first half")
    running.add_argument("--minutes", type=float, default=1e6)
    commands.add_parser("keep", help="put what has run into the record")
    args = parser.parse_args()
    if args.command == "keep":
        keep()
        return 0
    JOURNALS.mkdir(parents=True, exist_ok=True)
    one, _, of = args.shard.partition("/")
    recorder = Recorder(args.part, (int(one), int(of)), args.minutes * 60)
    return int(
        pytest.main([f"{ROOT / 'tests/pairs/test_pairs.py'}", "-q", "--tb=short", "-p", "no:cacheprovider"], [recorder])
    )


if __name__ == "__main__":
    sys.exit(main())
