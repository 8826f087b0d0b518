"""``headrace eval kl``: divergences against numpy's, and the table of a real model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from headrace.cli.main import app
from headrace.core.errors import ConfigError
from headrace.eval import tiny
from headrace.eval.kl import kl, measure, pieces
from headrace.eval.text_model import MODES, TextModel
from parity.harness import ModelRun


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.no_grad():
        return tiny.save(tiny.make("gemma3-untied-window-40"), tmp_path_factory.mktemp("gemma"))


PART = [(7 * i) % 250 + 3 for i in range(90)]


def test_kl_is_the_sum_over_tokens():
    rows = torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    p, q = rows.double().exp().numpy()
    expected = (p * np.log(p / q)).sum(1)
    assert kl(*rows).tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert kl(rows[0], rows[0]).abs().max() == 0


def test_a_text_model_is_the_model(folder):
    run = ModelRun(folder)
    found = torch.cat(list(TextModel(folder, MODES["float32"], 100).logprobs(PART)))
    torch.testing.assert_close(found, run.logprobs(PART), rtol=0, atol=1e-5)


def test_fewer_bits_move_answers_more(folder):
    names = ["bfloat16", "int8", "int4", "int8-bfloat16"]
    modes = [MODES[name] for name in names] + [MODES["float32"].with_cache(name) for name in ("int8", "fp8")]
    found = {one.mode: one for one in measure(folder, modes, [PART, PART[:40]])}
    exact = found["float32"]
    assert (exact.mean_kl, exact.p99_kl, exact.same_top) == (0, 0, 1)
    assert 0 < found["int8"].mean_kl < found["int4"].mean_kl
    assert found["int8-bfloat16"].mean_kl > 0
    assert 0 < found["float32, cache in int8"].mean_kl < found["float32, cache in fp8"].mean_kl
    assert found["int4"].n_bytes < found["int8"].n_bytes < found["bfloat16"].n_bytes < exact.n_bytes
    logprobs = ModelRun(folder)
    own = [logprobs.logprobs(part)[range(len(part) - 1), part[1:]] for part in (PART, PART[:40])]
    assert exact.perplexity == pytest.approx(float(torch.cat(own).mean().neg().exp()), rel=1e-4)


def test_texts_are_cut_and_limits_kept(folder):
    assert pieces(range(10), 4, 9) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert pieces(range(10), 4, 100) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    with pytest.raises(ConfigError, match="pieces of 300 tokens are beyond the 256 positions"):
        TextModel(folder, MODES["float32"], 300)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--mode", "int3"], "--mode int3: there are float32"),
        (["--kv-cache-dtype", "int4"], "--kv-cache-dtype int4: there are auto, float32"),
        (["--text", "/none"], "--text /none"),
    ],
)
def test_what_is_wrong_is_said(words, said, tmp_path):
    text = tmp_path / "text"
    text.write_text("some words")
    found = CliRunner().invoke(app, ["eval", "kl", "smollm2", "--text", str(text), *words])
    assert found.exit_code == 2
    assert said in " ".join(found.output.split())


@pytest.mark.real
@pytest.mark.slow
def test_the_built_in_model_in_its_own_blocks(tmp_path):
    license = Path(__file__).parents[2] / "LICENSE"
    words = ["eval", "kl", "smollm2", "--text", str(license), "--tokens", "768", "--context", "256", "--json"]
    found = CliRunner().invoke(app, [*words, "--mode", "gguf", "--mode", "int8"])
    assert found.exit_code == 0, found.output
    by_mode = {row["mode"]: row for row in json.loads(found.stdout)}
    # Only activations are rounded: no more than twice what 8-bit weights and activations were simulated to cost.
    assert 0 < by_mode["gguf"]["mean_kl"] < 1e-2
    assert 0 < by_mode["int8"]["mean_kl"] < 1e-2
    assert by_mode["gguf"]["n_bytes"] < 0.19 * by_mode["float32"]["n_bytes"]
