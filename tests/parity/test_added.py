"""An architecture that a package brings: the example of the manual, installed, equals transformers."""

from __future__ import annotations

import importlib
import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from harness import ModelRun
from test_parity import MAX_TOKENS, TOLERANCE, check

from headrace import LLM, ModelError, SamplingParams
from headrace.eval.parity import measure
from headrace.eval.references import open_reference
from headrace.eval.tiny import random_prompts, randomised, save
from headrace.eval.tiny_variants import BASE
from headrace.models.registry import ARCHITECTURES, architecture_of
from headrace.ops.native import core
from project import ROOT

MANUAL = ROOT / "docs" / "architectures.md"
FIELDS = {name: value for name, value in BASE.items() if not name.endswith("_implementation")}
CONFIG = {"architectures": ["ArceeForCausalLM"]}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages, at the front of the path."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    known = set(sys.modules)
    yield folder
    for name in set(sys.modules) - known:
        if getattr(sys.modules[name], "__file__", None) and Path(sys.modules[name].__file__).is_relative_to(folder):
            del sys.modules[name]


def install(site: Path, name: str, entry_points: str, **modules: str) -> None:
    """What pip leaves of a package: its modules, and its metadata."""
    metadata = site / f"{name.replace('-', '_')}-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    (metadata / "entry_points.txt").write_text(f"[headrace.architectures]\n{entry_points}\n")
    for module, code in modules.items():
        (site / f"{module}.py").write_text(code)
    importlib.invalidate_caches()


def example() -> tuple[str, str]:
    """The entry point and the module of the manual."""
    text = MANUAL.read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (toml,) = re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    name, value = re.search(r'^(\w+) = "(headrace_arcee:\w+)"$', toml, flags=re.MULTILINE).groups()
    return f"{name} = {value}", code


def arcee(folder: Path) -> tuple[Any, Path]:
    settings = {**BASE, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    model = transformers.ArceeForCausalLM(transformers.ArceeConfig(**settings)).eval().requires_grad_(False)
    return randomised(model, "arcee"), save(model, folder)


@pytest.fixture
def no_gradients() -> Any:
    with torch.no_grad():
        yield


def test_the_example_of_the_manual_is_an_architecture_like_any_other(site, tmp_path, no_gradients) -> None:
    entry_point, code = example()
    assert len(code.splitlines()) <= 60
    model, folder = arcee(tmp_path / "model")
    with pytest.raises(ModelError, match="'ArceeForCausalLM' is not supported"):
        ModelRun(folder)
    install(site, "headrace-arcee", entry_point, headrace_arcee=code)
    prompts = random_prompts(model.config.vocab_size)
    assert check(model, prompts, ModelRun(folder, chunk=33).run(prompts, MAX_TOKENS)) < TOLERANCE
    reference, _ = open_reference(folder)
    assert measure("arcee", folder, reference, prompts).holds()


@pytest.mark.skipif(not core.is_available(), reason=f"steps are recorded on the native core only: {core.reason()}")
def test_what_torch_computes_in_an_added_layer_is_not_lost_in_a_recording(site, tmp_path, caplog) -> None:
    entry_point, code = example()
    _, folder = arcee(tmp_path / "model")
    doubled = code.replace(
        "super().__init__(ctx, c, rope, block)",
        "super().__init__(ctx, c, rope, block)\n\n"
        "    def logits(self, hidden):\n        return -2.0 * super().logits(hidden)",
    )
    assert doubled != code
    install(site, "headrace-arcee", entry_point, headrace_arcee=doubled)

    def tokens(**options: Any) -> tuple[Any, int]:
        params = SamplingParams(max_tokens=12, ignore_eos=True, detokenize=False)
        with LLM(str(folder), dtype="float32", skip_tokenizer_init=True, num_threads=1, **options) as llm:
            output = llm.generate([5, 6, 7], params, use_tqdm=False).outputs[0].token_ids
            return output, llm.get_stats()[-1]["witnesses"].get("graph_replays", 0)

    caplog.set_level(logging.WARNING, "headrace")
    got, replays = tokens()
    assert (got, replays) == (tokens(cuda_graph_config=None)[0], 0)
    assert "steps run without recordings: the model computes aten.mul" in caplog.text


def test_packages_do_not_get_into_each_others_way(site) -> None:
    entry_point, code = example()
    install(site, "headrace-arcee", entry_point, headrace_arcee=code)
    assert architecture_of(CONFIG) == "ArceeForCausalLM"
    install(site, "other-arcee", "ArceeForCausalLM = other:Arcee")
    with pytest.raises(ModelError, match=r"package '[\w-]+-arcee' and package '[\w-]+-arcee' both bring .*uninstall"):
        architecture_of(CONFIG)


def test_a_package_cannot_replace_what_is_here(site) -> None:
    install(site, "better-llama", "LlamaForCausalLM = better:Llama")
    with pytest.raises(ModelError, match=r"package 'better-llama' brings .*'LlamaForCausalLM', which headrace has"):
        architecture_of({"architectures": ["Qwen3ForCausalLM"]})


def test_a_package_that_cannot_be_loaded_is_named(site, tmp_path, no_gradients) -> None:
    install(
        site, "headrace-arcee", "ArceeForCausalLM = headrace_arcee:Arcee", headrace_arcee="import nothing_of_the_kind"
    )
    _, folder = arcee(tmp_path / "model")
    with pytest.raises(ModelError, match=r"'headrace-arcee' brings .*cannot be loaded: ModuleNotFoundError: No module"):
        ModelRun(folder)


def test_an_unknown_architecture_is_told_the_nearest_by_what_its_configuration_says() -> None:
    def message(**config: Any) -> str:
        with pytest.raises(ModelError) as caught:
            architecture_of(config)
        return str(caught.value)

    gemma = {"query_pre_attn_scalar": 24, "rope_local_base_freq": 1e4, "altup_num_inputs": 4}
    told = message(architectures=["Gemma9ForCausalLM"], **FIELDS, **gemma)
    assert "Nearest by its configuration is Gemma3ForCausalLM; it knows nothing of altup_num_inputs." in told
    assert "Did you mean" not in told
    thinned = {"block_configs": [{}], "num_hidden_layers": 1}
    told = message(architectures=["NewForCausalLM"], **{**FIELDS, **thinned})
    assert "is DeciLMForCausalLM" in told
    assert "Nearest" not in message(architectures=["SomethingElse"], d_model=4, n_vocab=9)
    assert all(name in told for name in ARCHITECTURES)
    assert "entry point group 'headrace.architectures', docs/architectures.md" in told
