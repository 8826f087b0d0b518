"""The native sampler beside the torch sampler: the same bits for random options, threads and levels."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from random_cases import BATCH, batches, facts
from sampler_contract import NEEDS_CORE, run

from headrace.ops.native.core import is_available, native
from headrace.sampling import NativeSampler, TorchSampler
from headrace.sampling.params import Flag

pytestmark = NEEDS_CORE
LEVELS = native().runnable_levels() if is_available() else []


def check(n_cases: int, vocab_size: int, seed: int) -> None:
    for cases in batches(n_cases, vocab_size, seed):
        expected = facts(run(TorchSampler(BATCH, vocab_size), cases))
        got = facts(run(NativeSampler(BATCH, vocab_size), cases))
        assert got == expected, [one.init.sampling for one in cases]


@pytest.mark.parametrize(("n_cases", "vocab_size"), [(400, 24), (160, 3001), (16, 49152)])
def test_equals_torch(n_cases: int, vocab_size: int) -> None:
    check(n_cases, vocab_size, seed=1)


@pytest.mark.slow
def test_equals_torch_over_a_large_vocabulary() -> None:
    check(400, 49152, seed=2)


def test_rows_in_parts_and_side_by_side_are_alike() -> None:
    """One row is cut into parts when there is more than one thread, many rows are not."""
    cases = batches(BATCH, 40_001, 3)[0]
    before = native().threads()
    outcomes = []
    try:
        for threads in (1, 2, 3):
            native().set_threads(threads)
            together = run(NativeSampler(BATCH, 40_001), cases)
            alone = [run(NativeSampler(BATCH, 40_001), [one]) for one in cases]
            assert together.tokens.tolist() == [token for one in alone for token in one.tokens.tolist()]
            outcomes.append(facts(together))
            assert [entry for one in alone for entry in one.logprobs.values()] == [
                together.logprobs[row] for row in sorted(together.logprobs)
            ]
    finally:
        native().set_threads(before)
    assert outcomes[0] == outcomes[1] == outcomes[2]


def digest() -> str:
    """Of every bit that some random rows give."""
    total = hashlib.sha256()
    for n_cases, vocab_size in ((160, 24), (64, 3001), (8, 40_001)):
        for cases in batches(n_cases, vocab_size, 4):
            total.update(repr(facts(run(NativeSampler(BATCH, vocab_size), cases))).encode())
    return total.hexdigest()


@pytest.mark.parametrize("level", LEVELS)
def test_levels_are_alike(level: str) -> None:
    code = "from test_native_sampler import digest; print(digest())"
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1]), *filter(None, sys.path)])
    environment = {**os.environ, "HEADRACE_ISA": level, "PYTHONPATH": path}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == digest(), done.stderr


def test_the_core_knows_the_flags() -> None:
    core = native()
    assert Flag.DRAW == core.SAMPLE_DRAW
    assert Flag.RAW_LOGPROBS == core.SAMPLE_RAW_LOGPROBS
    assert Flag.PROCESSED_LOGPROBS == core.SAMPLE_PROCESSED_LOGPROBS
