"""The built-in model's file: its configuration, and its tensors against the reference package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, quants

from headrace.weights.checkpoint import expect, open_checkpoint
from headrace.weights.gguf_reader import read_header
from headrace.weights.resolve import resolve_model

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def path() -> Path:
    return resolve_model("smollm2").path


def test_configuration(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    assert checkpoint.config() == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100_000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
    }
    assert checkpoint.generation_config() == {"eos_token_id": [2], "bos_token_id": 1}
    assert len(checkpoint.names()) == 272
    expect(checkpoint, "model.layers.29.mlp.down_proj.weight", (576, 1536))
    checkpoint.close()


@pytest.mark.parametrize(
    ("gguf_name", "name"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("blk.0.attn_v.weight", "model.layers.0.self_attn.v_proj.weight"),
        ("blk.29.ffn_down.weight", "model.layers.29.mlp.down_proj.weight"),
        ("blk.7.ffn_norm.weight", "model.layers.7.post_attention_layernorm.weight"),
        ("blk.3.attn_k.weight", "model.layers.3.self_attn.k_proj.weight"),
    ],
)
def test_values(path: Path, gguf_name: str, name: str) -> None:
    checkpoint, info = open_checkpoint(path), read_header(path).tensors[gguf_name]
    with path.open("rb") as file:
        file.seek(info.offset)
        raw = torch.frombuffer(bytearray(file.read(info.nbytes)), dtype=torch.uint8).numpy()
    expected = torch.from_numpy(quants.dequantize(raw, GGMLQuantizationType[info.type.name]).copy()).reshape(info.shape)
    if "attn_k" in gguf_name:
        expected = expected.view(3, 32, 2, 576).transpose(1, 2).reshape(192, 576)
    assert torch.equal(checkpoint.tensor(name), expected)
    checkpoint.close()
