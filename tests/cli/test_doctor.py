"""Advice follows from the facts, and only from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from headrace.bench.machine import Machine
from headrace.cli.doctor import advice

GOOD = Machine(
    cpu="a CPU",
    architecture="x86_64",
    isa={"avx2": True},
    cpus=8,
    allowed_cpus=8,
    quota_cpus=None,
    memory=64 << 30,
    memory_limit=None,
    huge_pages="madvise",
)
TORCH: dict[str, Any] = {"version": "2"}


def test_a_good_machine_gets_one_hint() -> None:
    assert len(advice(GOOD, TORCH)) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quota_cpus": 2.5}, "--threads 2"),
        ({"quota_cpus": 0.5}, "--threads 1"),
        ({"allowed_cpus": 4}, "4 of 8"),
        ({"huge_pages": "never"}, "huge pages"),
        ({"memory_limit": 4 << 30}, "4.0 GiB of 64.0 GiB"),
    ],
)
def test_what_is_wrong_is_said(change: dict[str, Any], said: str) -> None:
    found = advice(replace(GOOD, **change), TORCH)
    assert len(found) == 2
    assert said in found[0]


def test_a_quota_that_covers_all_cpus_is_no_matter() -> None:
    assert len(advice(replace(GOOD, quota_cpus=8.0), TORCH)) == 1


def test_without_torch_nothing_runs() -> None:
    assert "torch is not installed" in advice(GOOD, None)[0]
