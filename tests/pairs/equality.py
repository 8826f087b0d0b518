"""What "the same as the plain run" means: tokens, text and ends, and logprobs as near as the operators promise."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from headrace.core.features import feature
from headrace.ops.native import core

from .scenarios import Finished

NATIVE_ONLY = frozenset({"graph"})
"""Features that do not act where the reference operators compute."""

REFERENCE_TOLERANCE = 5e-4
"""On logprobs, as in the parity tests: sharp attention blows fp32 noise up to 1.5e-4. Native operators promise the
bits."""


def assert_acted(got: Finished, names: Iterable[str]) -> None:
    """Every feature has left its mark: to equal the plain run by doing nothing proves nothing."""
    for name in names:
        if name in NATIVE_ONLY and not core.is_available():
            pytest.skip(f"{name} acts on the native core only: {core.reason()}")
        assert got.witnesses[feature(name).witness] > 0, f"{name} did not act: {got.witnesses}"


def assert_equal(got: Finished, plain: Finished, tolerance: float = REFERENCE_TOLERANCE) -> None:
    """``tolerance``: on logprobs, where the operators do not promise bits."""
    tolerance = 0.0 if got.is_exact else tolerance
    for index, (ours, theirs) in enumerate(zip(got.outputs, plain.outputs, strict=True)):
        for one, other in zip(ours, theirs, strict=False):
            place = f"request {index}, output {one.index}"
            assert one.token_ids == other.token_ids, place
            assert one.text == other.text, place
            assert (one.finish_reason, one.stop_reason) == (other.finish_reason, other.stop_reason), place
            if got.is_exact and one.cumulative_logprob is not None:
                assert one.cumulative_logprob == other.cumulative_logprob, place
            _assert_close(one.logprobs, other.logprobs, tolerance, place)
            _assert_close(one.prompt_logprobs[1:], other.prompt_logprobs[1:], tolerance, place)
            _assert_same_rows(one.generation_logits, other.generation_logits, tolerance, place)
    for index, (mine, reference) in enumerate(zip(got.context, plain.context, strict=True)):
        _assert_same_rows(mine, reference, tolerance, f"the prompt of request {index}")
    for index, (mine, reference) in enumerate(zip(got.encoded, plain.encoded, strict=bool(got.encoded))):
        assert mine.shape == reference.shape
        worst = np.abs(mine - reference).max()
        assert worst <= tolerance, f"request {index}: its encoded prompt differs by {worst}"


def _assert_same_rows(mine: np.ndarray | None, reference: np.ndarray | None, tolerance: float, place: str) -> None:
    """Logits; a run that did not ask for them has none."""
    if mine is None:
        return
    assert reference is not None
    assert mine.shape == reference.shape, place
    worst = np.abs(mine - reference).max()
    assert worst <= 10 * tolerance, f"{place}: logits differ by {worst}"


def _assert_close(mine: list[dict], reference: list[dict], tolerance: float, place: str) -> None:
    """Entries of a run that did not ask for logprobs are not there."""
    for entry, expected in zip(mine, reference, strict=bool(mine)):
        worst = max(abs(entry[token].logprob - expected[token].logprob) for token in entry)
        assert worst <= tolerance, f"{place}: logprobs differ by {worst}"
