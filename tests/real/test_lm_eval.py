"""lm-eval over the server gets the scores that it gets from transformers on the same weights."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

from project import ROOT

pytestmark = [pytest.mark.real, pytest.mark.slow]


def test_scores_over_http_equal_those_of_transformers() -> None:
    missing = [name for name in ("lm_eval", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: pip install 'lm_eval[api,hf]' (650 MB, so not a test extra)")
    command = [sys.executable, ROOT / "bench" / "eval_scores.py", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["log_likelihoods"] == 4 * report["questions"] >= 80
    assert report["headrace"]["acc"] == report["transformers"]["acc"] > 0.5
    assert report["headrace"]["acc_norm"] == report["transformers"]["acc_norm"]
    assert report["largest_difference"] <= 2e-4
    # Some answers are what the model would say itself, to the last token.
    assert report["greedy"] > 0
    assert report["greedy_differs"] == 0
