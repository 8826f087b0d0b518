"""Files that ``convert`` writes against the models they were made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace.convert.folder import write_folder
from headrace.convert.gguf_file import write_gguf
from headrace.core.errors import ConfigError
from headrace.eval import tiny
from headrace.layers.base import BuildContext
from headrace.models.registry import build_model
from headrace.ops.table import select_ops
from headrace.quant.formats import INT4, INT8
from headrace.quant.schemes import NO_SCHEME, AtLoad, FromFile
from headrace.tokenizer.load import load_tokenizer
from headrace.weights.checkpoint import open_checkpoint
from headrace.weights.gguf_reader import read_header
from tiny_text import write_tokenizer
from weights.forms import requantise
from weights.gguf_files import write_gguf as write_random_gguf

TEXT = "Some text, 12 345 signs:\n\tand ümläuts…"


def saved(folder: Path, family: str, **changes: Any) -> Path:
    """A tiny model whose tokenizer has a merge: GGUF wants some."""
    with torch.no_grad():
        model = tiny.make(family, **changes)
        tiny.save(model, folder)
    write_tokenizer(folder, model.config.vocab_size, chat_template="{{ messages[0].content }}")
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["te"] = vocab.pop("w300")
    tokenizer["model"]["merges"] = [["t", "e"]]
    file.write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 72 and 84: the last group is short, and 84 numbers of 4 bits are no whole words."""
    return saved(tmp_path_factory.mktemp("odd"), "qwen2", hidden_size=72, intermediate_size=84, head_dim=32)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("llama"), "llama")


def weights_of(path: Path, mode: str | None) -> tuple[dict[str, int], list[torch.Tensor]]:
    """Forms and memory of the model's weights once loaded: rounded, or as they are (None)."""
    checkpoint = open_checkpoint(path)
    ops = select_ops("cpu", torch.float32)
    found = {"int8": INT8, "int4": INT4}
    scheme = NO_SCHEME if mode == "none" else FromFile(checkpoint)
    if mode in found:
        scheme = AtLoad(found[mode], ops.round_blocks)
    model = build_model(checkpoint.config(), BuildContext(ops, torch.float32, scheme=scheme))
    model.load(checkpoint)
    checkpoint.close()
    return model.weight_formats(), model.memory()


def assert_same(
    one: tuple[dict[str, int], list[torch.Tensor]], other: tuple[dict[str, int], list[torch.Tensor]]
) -> None:
    assert one[0] == other[0]
    for left, right in zip(one[1], other[1], strict=True):
        assert torch.equal(left, right)


def folder_from(path: Path, out: Path, mode: str | None, dtype: torch.dtype | None = None) -> Path:
    checkpoint, seen = open_checkpoint(path), []
    write_folder(checkpoint, out, mode, dtype, seen.append)
    assert sum(seen) == sum(torch.Size(checkpoint.shape(name)).numel() for name in checkpoint.names())
    checkpoint.close()
    return out


def gguf_from(path: Path, out: Path, form: str) -> Path:
    checkpoint, seen = open_checkpoint(path), []
    write_gguf(checkpoint, out, form, seen.append)
    assert sum(seen) == sum(torch.Size(checkpoint.shape(name)).numel() for name in checkpoint.names())
    checkpoint.close()
    return out


@pytest.mark.parametrize("mode", ["int8", "int4"])
@pytest.mark.parametrize("family", ["odd", "qwen3-moe"])
def test_a_rounded_folder_holds_what_loading_makes(mode, family, odd, tmp_path):
    source = odd if family == "odd" else saved(tmp_path / "source", family, moe_intermediate_size=64)
    out = folder_from(source, tmp_path / "out", mode)
    assert_same(weights_of(out, None), weights_of(source, mode))
    assert weights_of(out, None)[0].keys() != {"float32"}
    assert load_tokenizer(out).encode(TEXT) == load_tokenizer(source).encode(TEXT)


def test_the_form_s_own_package_reads_a_rounded_folder(llama, tmp_path):
    compressors = pytest.importorskip("compressed_tensors.compressors", reason="reads the files of that form")
    from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
    from safetensors.torch import load_file

    out = folder_from(llama, tmp_path / "out", "int4")
    tensors = load_file(out / "model.safetensors")
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    groups = QuantizationConfig.model_validate(config).config_groups
    ours, n_read = open_checkpoint(out), 0
    for group in groups.values():
        scheme = group if isinstance(group, QuantizationScheme) else QuantizationScheme(targets=group, weights=None)
        for module in scheme.targets:
            parts = {
                name.removeprefix(f"{module}."): tensor
                for name, tensor in tensors.items()
                if name.startswith(f"{module}.")
            }
            compressor = compressors.BaseCompressor.get_value_from_registry("pack-quantized")
            theirs = compressor.decompress(parts, scheme)["weight"]
            assert (ours.tensor(f"{module}.weight") - theirs.float()).abs().max() <= 1e-3 * theirs.abs().max()
            n_read += 1
    assert n_read == 23


def test_a_folder_of_floats_has_the_values_of_few_bits(llama, tmp_path):
    source = requantise(llama, tmp_path / "source", "awq")
    out = folder_from(source, tmp_path / "out", None)
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    assert_same(weights_of(out, "none"), weights_of(source, "none"))
    half = folder_from(source, tmp_path / "half", None, torch.bfloat16)
    assert {tensor.dtype for _, tensor in tensors_of(half)} == {torch.bfloat16}


def tensors_of(path: Path) -> list[tuple[str, torch.Tensor]]:
    checkpoint = open_checkpoint(path)
    found = [(name, checkpoint.tensor(name)) for name in checkpoint.names()]
    checkpoint.close()
    return found


SLOW = ("llama-linear", "llama-llama3", "llama-yarn", "qwen2-tied", "mistral")


@pytest.mark.parametrize(
    "family", ["llama-biases", "qwen3", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_a_gguf_file_has_the_values_of_a_folder(family, tmp_path):
    source = saved(tmp_path / "source", family)
    out = gguf_from(source, tmp_path / "m.gguf", "F32")
    assert_same(weights_of(out, "none"), weights_of(source, "none"))
    ours, theirs = load_tokenizer(out), load_tokenizer(source)
    assert ours.encode(TEXT) == theirs.encode(TEXT)
    assert ours.eos_ids == theirs.eos_ids
    assert ours.chat_templates == theirs.chat_templates


@pytest.mark.parametrize(("digits", "name"), [(False, "gpt-2"), (True, "smollm")])
def test_a_split_goes_by_its_own_name_where_several_give_the_same_tokens(digits, name, tmp_path):
    """No digits are merged here, so that both split any text into the same tokens."""
    source = saved(tmp_path / "source", "qwen3")
    if digits:
        file = source / "tokenizer.json"
        tokenizer = json.loads(file.read_text())
        split = {"type": "Digits", "individual_digits": True}
        tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, tokenizer["pre_tokenizer"]]}
        file.write_text(json.dumps(tokenizer))
    out = gguf_from(source, tmp_path / "m.gguf", "F32")
    assert read_header(out).metadata["tokenizer.ggml.pre"] == name


@pytest.mark.parametrize(("form", "mode"), [("Q8_0", "int8"), ("Q4_0", "int4")])
def test_blocks_of_a_gguf_file_are_what_loading_makes(form, mode, llama, tmp_path):
    out = gguf_from(llama, tmp_path / "m.gguf", form)
    assert_same(weights_of(out, None), weights_of(llama, mode))


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_from_one_gguf_file_to_others(arch, tmp_path):
    source = write_random_gguf(tmp_path / "source.gguf", arch, kind="Q4_1", tied=True)
    out = gguf_from(source, tmp_path / "out.gguf", "F32")
    assert_same(weights_of(out, "none"), weights_of(source, "none"))
    assert_same(weights_of(gguf_from(source, tmp_path / "q.gguf", "Q8_0"), None), weights_of(source, "int8"))


def test_what_cannot_be_written_is_refused(odd, llama, tmp_path):
    with pytest.raises(ConfigError, match="whole blocks of 32 only; set --form to BF16"):
        gguf_from(odd, tmp_path / "m.gguf", "Q8_0")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="--form Q5_K: there are F32, F16, BF16, Q8_0, Q4_0"):
        gguf_from(llama, tmp_path / "m.gguf", "Q5_K")
    with pytest.raises(ConfigError, match="there is something already"):
        folder_from(llama, llama, "int8")
    gpt_oss = saved(tmp_path / "gpt-oss", "gpt-oss")
    with pytest.raises(ConfigError, match="load it with quantization 'int4' instead"):
        folder_from(gpt_oss, tmp_path / "out", "int4")
    with pytest.raises(ConfigError, match="a folder of GptOssForCausalLM is not written as GGUF"):
        gguf_from(gpt_oss, tmp_path / "m.gguf", "F32")
    nothing_like_it = saved(tmp_path / "scaled", "llama", rms_norm_eps=1e-5)
    (nothing_like_it / "tokenizer.json").write_text(
        (nothing_like_it / "tokenizer.json").read_text().replace('"ByteLevel"', '"Whitespace"', 1)
    )
    with pytest.raises(ConfigError, match="the tokenizer is none that is written as GGUF"):
        gguf_from(nothing_like_it, tmp_path / "m.gguf", "F32")
