"""``verify`` holds on an exact engine, and fails when a kernel is planted that looks at the other rows of its batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace import LLM
from headrace.eval import tiny
from headrace.eval.exactness import CHECKS, Finding, make_work, verify
from headrace.ops import table

VOCAB = 128
CHECK = {check.name: check for check in CHECKS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.no_grad():
        return tiny.save(tiny.make("llama"), tmp_path_factory.mktemp("llama"))


def findings(folder: Path, *names: str) -> tuple[list[Finding], bool]:
    start = partial(LLM, folder, skip_tokenizer_init=True)
    return verify(start, [CHECK[name] for name in names], make_work(VOCAB), lambda found: None)


def test_every_check_acts_and_holds(folder: Path) -> None:
    found, bits = findings(folder, *CHECK)
    assert [(one.check.name, one.idle, one.where if bits else "") for one in found] == [(n, (), "") for n in CHECK]
    assert all(one.holds(bits=bits) for one in found)


def _plant(monkeypatch: pytest.MonkeyPatch, name: str, wrong: Callable[..., Any]) -> None:
    """Puts ``wrong(right)`` in place of an operator in every build from here on."""
    select = table.select_ops

    def planted(*args: Any, **kwargs: Any) -> table.Ops:
        ops = select(*args, **kwargs)
        return replace(ops, **{name: wrong(getattr(ops, name))})

    monkeypatch.setattr("headrace.runner.build.select_ops", planted)


def test_a_planted_norm_that_depends_on_the_number_of_rows_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_rows(norm: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return lambda x, weight, eps: norm(x, weight, eps) * (1.0 + 1e-6 * x.shape[0])

    _plant(monkeypatch, "rms_norm", by_rows)
    (found,), _ = findings(folder, "batch")
    assert found.worst_logprob > 0.0 or not found.tokens_equal
    assert not found.holds(bits=True)
    assert "round 0" in found.where


def test_a_check_that_did_not_act_does_not_hold() -> None:
    assert not Finding(CHECK["batch"], tokens_equal=True, worst_logprob=0.0, idle=("batching",)).holds(bits=False)


def test_without_the_promise_of_bits_logprobs_may_differ_and_tokens_may_not() -> None:
    near = Finding(CHECK["batch"], tokens_equal=True, worst_logprob=1e-7)
    assert near.holds(bits=False)
    assert not near.holds(bits=True)
    assert not Finding(CHECK["batch"], tokens_equal=False, worst_logprob=0.0).holds(bits=False)
