"""Published models at full size, without weights: names, shapes and counts of their tensors, and their memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from layouts import LAYOUTS, tensors
from typer.testing import CliRunner

from headrace.cli.main import app
from headrace.core.errors import ModelError
from headrace.eval.plan import plan
from headrace.layers.base import BuildContext
from headrace.models.base import Model
from headrace.models.published import PUBLISHED, published
from headrace.models.registry import build_model
from headrace.ops.table import select_ops

BILLIONS = {
    "Llama-3.3-70B": 70.55,
    "Llama-3.2-11B-Vision": 10.67,
    "Mixtral-8x7B": 46.70,
    "Qwen3-30B-A3B": 30.53,
    "Qwen3-Next-80B-A3B": 79.67,
    "gpt-oss-20b": 20.91,
    "gpt-oss-120b": 116.83,
    "Llama-4-Scout-17B-16E": 107.77,
    "Llama-3_3-Nemotron-Super-49B": 49.87,
    "Llama-3_1-Nemotron-Ultra-253B": 253.40,
    "Nemotron-H-8B": 8.10,
    "Nemotron-3-Nano-30B-A3B": 31.58,
    "DeepSeek-V3": 671.03,
}
"""Parameters as published, what is not read left out: multi-token prediction, and vision towers but for Llama 3.2's."""

QUICK = ("Mixtral-8x7B", "Qwen3-30B-A3B", "gpt-oss-20b", "Nemotron-H-8B")


def build(name: str) -> Model:
    return build_model(published(name), BuildContext(select_ops("cpu", torch.bfloat16), torch.bfloat16))


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in PUBLISHED])
def test_the_model_is_made_of_the_tensors_of_its_files(name: str) -> None:
    """Ultra 253B is held to its count only."""
    model = build(name)
    assert round(model.n_params / 1e9, 2) == BILLIONS[name]
    if name in LAYOUTS:
        assert model.tensor_shapes() == tensors(LAYOUTS[name])


def test_layouts_are_read_as_they_say() -> None:
    assert tensors("a.[0-2,5,7-9/2].b.[1-2]  4 5\nc  6") == {
        f"a.{i}.b.{j}": (4, 5) for i in (0, 1, 2, 5, 7, 9) for j in (1, 2)
    } | {"c": (6,)}
    with pytest.raises(ValueError, match="twice"):
        tensors("a.[0-2]  1\na.[2]  1")


@pytest.mark.slow
def test_weights_are_planned_by_precision_and_by_what_a_step_reads() -> None:
    """By hand: two bytes a parameter; 61 layers of 512 + 64 numbers; 8 experts of 256 are read."""
    deepseek = plan(published("deepseek-v3"), [1024, 1 << 30])
    sizes = {one.precision: one for one in deepseek.weights}
    assert sizes["bfloat16"].nbytes == pytest.approx(2 * 671.026e9, rel=1e-4)
    # Routers are in float32 in both.
    assert sizes["float32"].nbytes == pytest.approx(2 * sizes["bfloat16"].nbytes, rel=1e-3)
    assert sizes["int8"].nbytes / sizes["bfloat16"].nbytes == pytest.approx(34 / 64, rel=0.01)
    assert sizes["int4"].nbytes / sizes["bfloat16"].nbytes == pytest.approx(18 / 64, rel=0.02)
    experts = 58 * 256 * 3 * 2048 * 7168 * 2
    assert sizes["bfloat16"].nbytes - sizes["bfloat16"].step_nbytes == pytest.approx(experts * 248 / 256, rel=1e-6)
    assert deepseek.lengths == (1024, 163840)
    (latent,) = deepseek.layers
    assert latent.held == (61 * 576 * 2 * 1024, 61 * 576 * 2 * 163840)
    assert latent.reusable == latent.held


def test_the_cache_is_planned_by_what_layers_keep() -> None:
    oss = plan(published("gpt-oss-120b"), [131072])
    sliding, full = oss.layers
    assert (sliding.n_layers, full.n_layers) == (18, 18)
    per_token = 18 * 2 * 8 * 64 * 2
    assert full.held == (per_token * 131072,)
    # A window of 128 tokens in blocks of 32, one of which it only touches.
    assert sliding.held == (per_token * 160,)


def test_the_command_plans_what_it_is_given(tmp_path: Path) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["plan", *arguments])
        return done.exit_code, done.stdout + " ".join(done.stderr.split())

    assert set(PUBLISHED) <= set(run()[1].split())
    status, shown = run("Nemotron-H-8B", "--tokens", "512,8192")
    assert status == 0
    assert "8.10 billion parameters in 311 tensors" in shown
    config = {**published("mixtral-8x7b"), "quantization_config": {"quant_method": "gptq"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for given in (tmp_path, tmp_path / "config.json"):
        status, shown = run(str(given), "--json")
        assert status == 0
        assert "the file packs its weights (gptq)" in shown
        assert json.loads(shown[: shown.rindex("}") + 1])["n_params"] == 46_702_792_704
    for arguments, message in {
        ("some/model",): "plan looks nothing up on a hub",
        ("Mixtral-9x7B",): "no published model; of those there are",
        ("gpt-oss-20b", "--tokens", "0"): "give lengths of at least 1",
        (str(tmp_path / "layouts.json"),): "there is no such path",
    }.items():
        status, shown = run(*arguments)
        assert status == 2
        assert message in shown
    with pytest.raises(ModelError, match="Did you mean 'mixtral-8x7b'"):
        published("Mixtral-9x7B")
