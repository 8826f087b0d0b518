"""Advice follows from the facts, and only from them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from headrace.bench.machine import ISA_FLAGS, Machine
from headrace.cli.doctor import ISA_BRINGS, Native, advice

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
    open_files=65536,
)
TORCH: dict[str, Any] = {"version": "2"}
NATIVE = Native("avx2", ("avx2", "avx512"), "", {"linear": "native", "rope": "native"})


def test_a_good_machine_gets_one_hint() -> None:
    assert len(advice(GOOD, TORCH, NATIVE)) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quota_cpus": 2.5}, "--threads 2"),
        ({"quota_cpus": 0.5}, "--threads 1"),
        ({"allowed_cpus": 4}, "4 of 8"),
        ({"huge_pages": "never"}, "huge pages"),
        ({"memory_limit": 4 << 30}, "4.0 GiB of 64.0 GiB"),
        ({"open_files": 1024}, "ulimit -n"),
    ],
)
def test_what_is_wrong_is_said(change: dict[str, Any], said: str) -> None:
    found = advice(replace(GOOD, **change), TORCH, NATIVE)
    assert len(found) == 2
    assert said in found[0]


def test_a_quota_that_covers_all_cpus_is_no_matter() -> None:
    assert len(advice(replace(GOOD, quota_cpus=8.0, open_files=None), TORCH, NATIVE)) == 1


def test_without_torch_nothing_runs() -> None:
    assert "torch is not installed" in advice(GOOD, None, None)[0]


def test_without_a_native_core_the_reason_is_said() -> None:
    found = advice(GOOD, TORCH, Native(None, (), "nobody built it", {"linear": "reference"}))
    assert "nobody built it" in found[0]
    assert len(found) == 2


def test_operators_that_are_still_the_reference_are_named() -> None:
    found = advice(GOOD, TORCH, replace(NATIVE, operators={"linear": "native", "rope": "reference"}))
    assert "1 of 2" in found[0]
    assert "rope" in found[0]
    assert "linear" not in found[0]


def test_a_level_that_this_machine_has_not_is_a_finding_and_no_crash() -> None:
    code = "from headrace.cli.doctor import _native_facts; facts = _native_facts(); print(facts.level, facts.missing)"
    environment = {**os.environ, "HEADRACE_ISA": "nonsense"}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("None ")


def test_every_instruction_set_says_what_it_brings() -> None:
    assert ISA_BRINGS.keys() == ISA_FLAGS.keys()
