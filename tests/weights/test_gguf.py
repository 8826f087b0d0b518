"""GGUF files: configuration, names, undone conversions and dequantised values against the reference package."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from gguf_files import BLOCK_TYPES, HEAD_DIM, READ_ONLY_TYPES, VOCAB, converted, layout, original_weights, write_gguf
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from headrace.core.errors import CheckpointError
from headrace.weights.checkpoint import expect, open_checkpoint
from headrace.weights.gguf_blocks import SUPPORTED, dequantise
from headrace.weights.gguf_reader import GGML_TYPES, read_header
from headrace.weights.gguf_rope import llama3_divisors
from headrace.weights.resolve import resolve_model

BY_NAME = {form.name: form for form in GGML_TYPES.values()}


@pytest.mark.parametrize("arch", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize("tied", [True, False])
def test_original_weights_come_back(tmp_path: Path, arch: str, tied: bool) -> None:
    weights = original_weights(arch, tied)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", arch, weights=weights, tied=tied))
    assert sorted(checkpoint.names()) == sorted(weights)
    assert checkpoint.config()["tie_word_embeddings"] is tied
    for name, weight in weights.items():
        expect(checkpoint, name, weight.shape)
        assert checkpoint.dtype(name) == torch.float32
        # 1 + w is rounded when the file is written.
        lost = 3e-7 if arch == "gemma3" and name.endswith("norm.weight") else 0
        torch.testing.assert_close(checkpoint.tensor(name), torch.from_numpy(weight), rtol=0, atol=lost)
    assert checkpoint.generation_config() == {"eos_token_id": [2, 7], "bos_token_id": 1}


@pytest.mark.parametrize("kind", [*BLOCK_TYPES, "F16", "BF16"])
def test_stored_forms_match_the_reference_bit_for_bit(tmp_path: Path, kind: str) -> None:
    weights = original_weights("qwen3", tied=True)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", "qwen3", weights=weights, kind=kind))
    form = GGMLQuantizationType[kind]
    dtype = {"F16": torch.float16, "BF16": torch.bfloat16}.get(kind, torch.float32)
    for name, weight in weights.items():
        if weight.ndim == 1:
            continue
        expected = torch.from_numpy(quants.dequantize(quants.quantize(weight, form), form))
        assert checkpoint.dtype(name) == dtype
        assert torch.equal(checkpoint.tensor(name).float(), expected)


@pytest.mark.parametrize("n_blocks", [1, 7, 300])
@pytest.mark.parametrize("kind", [*BLOCK_TYPES, *READ_ONLY_TYPES])
def test_any_block_bytes_dequantise_as_the_reference_does(kind: str, n_blocks: int) -> None:
    form = BY_NAME[kind]
    raw = np.random.default_rng(5).integers(0, 256, (n_blocks, form.nbytes), dtype=np.uint8)
    if kind == "MXFP4":
        # A scale of 255 is no number; the reference reads on as if it were one.
        raw[raw[:, 0] == 255, 0] = 254
    with np.errstate(all="ignore"):
        expected = quants.dequantize(raw, GGMLQuantizationType[kind])
    found = dequantise(torch.from_numpy(raw).reshape(-1), form).view(n_blocks, form.block).numpy()
    assert np.array_equal(found, expected, equal_nan=True)
    # The reference has no negative zero among the numbers of four bits; the format has.
    assert kind == "MXFP4" or np.array_equal(np.signbit(found[found == 0]), np.signbit(expected[expected == 0]))


@pytest.mark.parametrize("chunk_bytes", [1, 1 << 20])
@pytest.mark.parametrize("kind", READ_ONLY_TYPES)
def test_forms_that_are_only_read_come_out_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, chunk_bytes: int
) -> None:
    form = BY_NAME[kind]
    # Small bytes everywhere: no float16 scale is infinite.
    rows = np.random.default_rng(5).integers(0, 0x40, (6, 3 * form.nbytes), dtype=np.uint8)
    path = write_gguf(tmp_path / "m.gguf", blocks={"blk.9.ffn_down.weight": (kind, rows)})
    monkeypatch.setattr("headrace.weights.files.CHUNK_BYTES", chunk_bytes)
    checkpoint = open_checkpoint(path)
    found = checkpoint.tensor("model.layers.9.mlp.down_proj.weight")
    checkpoint.close()
    assert found.shape == (6, 3 * form.block)
    assert found.isfinite().all()
    assert found.std() > 0
    assert np.array_equal(found.numpy(), quants.dequantize(rows, GGMLQuantizationType[kind]))


def test_every_form_with_a_reader_is_compared_with_the_reference() -> None:
    assert set(SUPPORTED) == {"F32", "F16", "BF16", *BLOCK_TYPES, *READ_ONLY_TYPES}


def test_a_model_in_several_files(tmp_path: Path) -> None:
    weights = original_weights("llama", tied=False)
    whole = open_checkpoint(write_gguf(tmp_path / "m.gguf", weights=weights, tied=False, kind="Q4_0"))
    (tmp_path / "parts").mkdir()
    first = write_gguf(tmp_path / "parts" / "n.gguf", weights=weights, tied=False, kind="Q4_0", tensors_a_file=5)
    files = sorted(first.parent.glob("*.gguf"))
    assert len(files) == 5
    assert resolve_model(str(first.parent)).path == first
    checkpoint = open_checkpoint(first)
    assert checkpoint.config() == whole.config()
    assert checkpoint.nbytes() == whole.nbytes()
    for name in weights:
        assert torch.equal(checkpoint.tensor(name), whole.tensor(name))
    assert {checkpoint.file_of(name) for name in weights} == set(files)
    checkpoint.close()
    with pytest.raises(CheckpointError, match=r"one of 5 files of a model; give the first, n-00001-of-00005\.gguf"):
        open_checkpoint(files[1])
    files[2].rename(tmp_path / "away")
    with pytest.raises(CheckpointError, match=r"one of 5 files, and n-00003-of-00005\.gguf is not beside it"):
        open_checkpoint(first)
    shutil.copy(files[3], files[2])
    with pytest.raises(CheckpointError, match=r"00003-of-00005\.gguf: is number 3 of 5 files, not 2"):
        open_checkpoint(first)
    files[2].unlink()
    write_gguf(files[2], weights=weights, tied=False)
    with pytest.raises(CheckpointError, match=r"is no part of n-00001-of-00005\.gguf"):
        open_checkpoint(first)
    first.rename(first.with_name("renamed.gguf"))
    with pytest.raises(CheckpointError, match=r"is one of 5 files: expected a name that ends in -00001-of-00005"):
        open_checkpoint(first.with_name("renamed.gguf"))


def test_quantised_llama_rows_are_reordered_after_dequantising(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = original_weights("llama", tied=True)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", "llama", weights=weights, kind="Q4_1"))
    # One head at a time: the smallest chunk there is.
    monkeypatch.setattr("headrace.weights.files.CHUNK_BYTES", 1)
    for gguf_name, (name, shape) in layout("llama", tied=True).items():
        if len(shape) == 1:
            continue
        stored = quants.quantize(converted("llama", gguf_name, weights[name]), GGMLQuantizationType.Q4_1)
        rows = quants.dequantize(stored, GGMLQuantizationType.Q4_1)
        if ".attn_q." in gguf_name or ".attn_k." in gguf_name:
            rows = rows.reshape(-1, HEAD_DIM // 2, 2, shape[1]).swapaxes(1, 2).reshape(shape)
        out = torch.empty(shape, dtype=torch.bfloat16)
        checkpoint.read_into(name, out)
        assert torch.equal(out, torch.from_numpy(rows).bfloat16())


@pytest.mark.parametrize("arch", ["llama", "qwen3", "gemma3"])
def test_transformers_takes_the_configuration(tmp_path: Path, arch: str) -> None:
    config = open_checkpoint(write_gguf(tmp_path / "m.gguf", arch)).config()
    model_type = config.pop("model_type")
    taken = AutoConfig.for_model(model_type, **config)
    for name in ("hidden_size", "num_key_value_heads", "head_dim", "rms_norm_eps", "vocab_size", "intermediate_size"):
        assert getattr(taken, name) == config[name]
    assert config["vocab_size"] == VOCAB
    assert config["rms_norm_eps"] == 1e-5
    assert config["rope_theta"] == 50_000.0


def test_gemma3_layers_and_scales(tmp_path: Path) -> None:
    config = open_checkpoint(
        write_gguf(tmp_path / "m.gguf", "gemma3", fields={"final_logit_softcapping": 30.0})
    ).config()
    assert config["layer_types"] == ["sliding_attention", "sliding_attention"]
    assert config["sliding_window"] == 512
    assert config["query_pre_attn_scalar"] == HEAD_DIM
    assert config["rope_local_base_freq"] == 10_000.0
    assert config["final_logit_softcapping"] == 30.0
    fields = {"attention.sliding_window_pattern": [True, False], "rope.freq_base_swa": 20_000.0}
    config = open_checkpoint(write_gguf(tmp_path / "n.gguf", "gemma3", fields=fields)).config()
    assert config["layer_types"] == ["sliding_attention", "full_attention"]
    assert config["rope_local_base_freq"] == 20_000.0


def test_rope_scaling_from_metadata(tmp_path: Path) -> None:
    def scaling(**fields: Any) -> dict[str, Any] | None:
        named = {f"rope.scaling.{key}": value for key, value in fields.items()}
        return open_checkpoint(write_gguf(tmp_path / "m.gguf", "qwen3", fields=named)).config().get("rope_scaling")

    assert scaling() is None
    assert scaling(type="none") is None
    assert scaling(type="linear", factor=8.0) == {"rope_type": "linear", "factor": 8.0}
    assert scaling(type="yarn", factor=4.0, original_context_length=512) == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 512,
    }
    with pytest.raises(
        CheckpointError, match="rope scaling 'longrope' is not supported; supported: none, linear, yarn"
    ):
        scaling(type="longrope", factor=4.0)


def test_llama3_frequencies_are_recognised(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    parameters = {"rope_theta": 50_000.0, **scaling}
    reference = AutoConfig.for_model("llama", head_dim=HEAD_DIM, rope_parameters=parameters)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](reference, torch.device("cpu"))
    plain = 50_000.0 ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    table = (plain / scaled).numpy().astype(np.float32)
    np.testing.assert_allclose(llama3_divisors(50_000.0, HEAD_DIM // 2, scaling), table, rtol=1e-5)
    path = write_gguf(tmp_path / "m.gguf", extra={"rope_freqs.weight": table})
    assert open_checkpoint(path).config()["rope_scaling"] == scaling
    table[HEAD_DIM // 4] *= 1.5
    path = write_gguf(tmp_path / "n.gguf", extra={"rope_freqs.weight": table})
    with pytest.raises(CheckpointError, match=r"'rope_freqs\.weight' is not a llama3 table"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block_count": None}, r"'llama\.block_count' is missing"),
        ({"block_count": "two"}, r"'llama\.block_count' has the wrong type \(str\)"),
        ({"block_count": 0}, "is 0, expected a positive number"),
        ({"attention.head_count_kv": [2, 1]}, r"head_count_kv' has the wrong type"),
        ({"rope.freq_base": float("nan")}, "positive finite"),
        ({"expert_count": 8}, r"'llama\.expert_used_count' is missing"),
        ({"rope.dimension_count": 16}, "dimension_count 16 differs from the head width 32"),
        ({"attention.value_length": 16}, "different width"),
        ({"embedding_length": 63}, r"token_embd\.weight': expected 63 columns \(embedding_length\), found 64"),
    ],
)
def test_metadata_that_does_not_fit(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(write_gguf(tmp_path / "m.gguf", fields=fields))


def test_equal_values_per_layer_are_one_value(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", fields={"attention.head_count_kv": [2, 2]}))
    assert checkpoint.config()["num_key_value_heads"] == 2


def test_unknown_tensors_and_types_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", extra={"blk.0.attn_q_norm.weight": np.ones(4, np.float32)})
    with pytest.raises(CheckpointError, match=r"'blk\.0\.attn_q_norm\.weight' has no place in architecture 'llama'"):
        open_checkpoint(path)
    rows = np.zeros((2, 66), np.uint8)
    path = write_gguf(tmp_path / "n.gguf", blocks={"blk.9.ffn_down.weight": ("IQ2_XXS", rows)})
    with pytest.raises(
        CheckpointError, match=r"n\.gguf: tensor '.*' is stored as IQ2_XXS; supported: F32, F16, BF16, Q4_0"
    ):
        open_checkpoint(path)
    path = write_gguf(tmp_path / "o.gguf", extra={"blk.0.attn_q.bias": np.ones(33, np.float32)})
    with pytest.raises(CheckpointError, match=r"attn_q\.bias': expected a multiple of 32 rows"):
        open_checkpoint(path)


def test_biases_of_q_and_k_are_reordered_too(tmp_path: Path) -> None:
    bias = np.arange(128, dtype=np.float32)
    path = write_gguf(tmp_path / "m.gguf", extra={"blk.0.attn_q.bias": converted("llama", "blk.0.attn_q.bias", bias)})
    checkpoint = open_checkpoint(path)
    assert checkpoint.config()["attention_bias"] is True
    assert checkpoint.tensor("model.layers.0.self_attn.q_proj.bias").tolist() == bias.tolist()


def test_header_metadata_types(tmp_path: Path) -> None:
    fields = {
        "x.flags": [True, False],
        "x.numbers": [1.5, 2.5],
        "x.texts": ["a", "é😀", ""],
        "x.flag": True,
        "x.text": "ü",
    }
    header = read_header(write_gguf(tmp_path / "m.gguf", fields=fields))
    found = {key: header.metadata[f"llama.{key}"] for key in fields}
    assert found["x.flags"].tolist() == [True, False]
    assert found["x.numbers"].tolist() == [1.5, 2.5]
    assert found["x.texts"] == ["a", "é😀", ""]
    assert found["x.flag"] is True
    assert found["x.text"] == "ü"
    assert header.version == 3
