"""Threads are counted by what the container grants, not by what the machine has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headrace.core.cgroup import usable_cpus


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


@pytest.mark.parametrize(
    ("cpu_max", "expected"),
    [("max 100000", 8), ("200000 100000", 2), ("350000 100000", 3), ("50000 100000", 1), ("9900000 100000", 8)],
)
def test_whole_cpus_of_the_quota(cpu_max: str, expected: int, tmp_path: Path) -> None:
    for name, text in (("proc/self/cgroup", "0::/box\n"), ("sys/fs/cgroup/box/cpu.max", cpu_max + "\n")):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert usable_cpus(tmp_path) == expected


def test_without_a_control_group_the_affinity_mask_counts(tmp_path: Path) -> None:
    assert usable_cpus(tmp_path) == 8
