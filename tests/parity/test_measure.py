"""``headrace eval parity``: every tiny model through the engine against its reference, and the command itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from headrace import ModelError
from headrace.cli.main import app
from headrace.core.errors import CheckpointError
from headrace.eval import references as known
from headrace.eval.parity import measure
from headrace.eval.tiny import names_of, random_prompts
from headrace.eval.tiny_variants import LABELLED, VARIANTS
from headrace.models.registry import ARCHITECTURES, architecture_of
from headrace.weights.checkpoint import open_checkpoint

References = Callable[[str], tuple[Any, Path]]


@pytest.mark.parametrize("name", [*VARIANTS, *LABELLED])
def test_the_engine_gives_what_the_reference_gives(name: str, references: References) -> None:
    model, folder = references(name)
    found = measure(name, folder, model, random_prompts(model.config.vocab_size), num_threads=1)
    print(found)
    assert found.holds(5e-4 if name not in LABELLED else 1e-3)
    assert found.n_greedy == (0 if name in LABELLED else 40)


def test_every_architecture_has_a_tiny_model(references: References) -> None:
    named = {architecture_of(open_checkpoint(references(name)[1]).config()) for name in (*VARIANTS, *LABELLED)}
    assert named == set(ARCHITECTURES)


@pytest.mark.parametrize("name", ["qwen3-moe", "decilm", "qwen2-process-reward", "gemma3-labels"])
def test_a_reference_that_is_read_from_its_files_is_the_one_that_wrote_them(name: str, references: References) -> None:
    model, folder = references(name)
    (prompt,) = random_prompts(model.config.vocab_size, [50])
    assert torch.equal(known.rows(known.open_reference(folder)[0], prompt), known.rows(model, prompt))


def test_a_difference_is_found(references: References) -> None:
    """In one logit of one row; in the likeliest token."""
    model, folder = references("qwen3")
    prompts = random_prompts(model.config.vocab_size, [20])

    def off(**changed: float) -> Any:
        def call(token_ids: torch.Tensor) -> SimpleNamespace:
            logits = model(token_ids).logits.clone()
            logits[0, 5, logits[0, 5].argmin()] += changed.get("unlikely", 0.0)
            logits[0, 5, int(token_ids[0, 6])] += changed.get("prompt", 0.0)
            logits[0, -2, logits[0, -2].argmin()] += changed.get("greedy", 0.0)
            return SimpleNamespace(logits=logits)

        return call

    assert measure("same", folder, off(), prompts).holds()
    for kind, amount in {"unlikely": 0.02, "prompt": 0.01, "greedy": 1000.0, "prompt, broken": float("nan")}.items():
        found = measure(kind, folder, off(**{kind.split(",")[0]: amount}), prompts)
        assert not found.holds(), found
    assert measure("last", folder, off(greedy=1000.0), prompts).same_greedy == 7


def test_the_command_prints_a_row_for_each_model(references: References) -> None:
    shown = CliRunner().invoke(app, ["eval", "parity", "--tiny", "NemotronHForCausalLM", "--json", "--threads", "1"])
    assert shown.exit_code == 0, shown.output
    assert [row["name"] for row in json.loads(shown.stdout)] == names_of("NemotronHForCausalLM")
    _, folder = references("qwen2-labels")
    shown = CliRunner().invoke(app, ["eval", "parity", str(folder), "--threads", "1"])
    assert shown.exit_code == 0
    assert "equal" in shown.stdout
    # What no difference of floats can be below.
    shown = CliRunner().invoke(app, ["eval", "parity", str(folder), "--threads", "1", "--tolerance", "1e-12"])
    assert shown.exit_code == 1
    assert "DIFFERENT" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a model, or --tiny"),
        (["--tiny", "llama", "--text", "x"], "--text goes with a model"),
        (["--tiny", "lama"], "there is no tiny model 'lama'"),
        (["--tiny", "llama", "--prompts", "3,none"], "--prompts '3,none': give lengths"),
    ],
)
def test_the_command_says_what_is_wrong(arguments: list[str], message: str) -> None:
    shown = CliRunner().invoke(app, ["eval", "parity", *arguments])
    assert shown.exit_code == 2
    assert message in " ".join(shown.stderr.split())


def test_without_transformers_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    shown = CliRunner().invoke(app, ["eval", "parity", "--tiny", "llama"])
    assert shown.exit_code == 2
    assert "pip install 'headrace[parity]'" in " ".join(shown.stderr.split())


def test_weights_that_the_reference_does_not_find_are_an_error(references: References, tmp_path: Path) -> None:
    _, folder = references("llama")
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"does not find model\.layers\.3"):
        known.open_reference(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["NoSuchModel"]}))
    with pytest.raises(ModelError):
        known.open_reference(tmp_path)
