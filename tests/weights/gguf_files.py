"""Small GGUF files, written by the reference writer with the changes that llama.cpp's converter makes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, quants

BLOCK_TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4")
"""Forms that the reference package can write."""
READ_ONLY_TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
"""Forms that it can only read."""

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCAB = 64, 2, 4, 2, 32, 96, 50

_HF_LAYER = {
    "attn_norm": ("input_layernorm", (HIDDEN,)),
    "attn_q": ("self_attn.q_proj", (HEADS * HEAD_DIM, HIDDEN)),
    "attn_k": ("self_attn.k_proj", (KV_HEADS * HEAD_DIM, HIDDEN)),
    "attn_v": ("self_attn.v_proj", (KV_HEADS * HEAD_DIM, HIDDEN)),
    "attn_output": ("self_attn.o_proj", (HIDDEN, HEADS * HEAD_DIM)),
    "ffn_gate": ("mlp.gate_proj", (FFN, HIDDEN)),
    "ffn_up": ("mlp.up_proj", (FFN, HIDDEN)),
    "ffn_down": ("mlp.down_proj", (HIDDEN, FFN)),
}
_QK_NORMS = {"attn_q_norm": ("self_attn.q_norm", (HEAD_DIM,)), "attn_k_norm": ("self_attn.k_norm", (HEAD_DIM,))}
_HF_EXTRA = {
    "llama": {"ffn_norm": ("post_attention_layernorm", (HIDDEN,))},
    "qwen3": {"ffn_norm": ("post_attention_layernorm", (HIDDEN,)), **_QK_NORMS},
    "gemma3": {
        "post_attention_norm": ("post_attention_layernorm", (HIDDEN,)),
        "ffn_norm": ("pre_feedforward_layernorm", (HIDDEN,)),
        "post_ffw_norm": ("post_feedforward_layernorm", (HIDDEN,)),
        **_QK_NORMS,
    },
}


def layout(arch: str, tied: bool) -> dict[str, tuple[str, tuple[int, ...]]]:
    """GGUF name -> (Hugging Face name, shape)."""
    tensors = {
        "token_embd.weight": ("model.embed_tokens.weight", (VOCAB, HIDDEN)),
        "output_norm.weight": ("model.norm.weight", (HIDDEN,)),
    }
    if not tied:
        tensors["output.weight"] = ("lm_head.weight", (VOCAB, HIDDEN))
    for layer in range(LAYERS):
        for stem, (name, shape) in {**_HF_LAYER, **_HF_EXTRA[arch]}.items():
            tensors[f"blk.{layer}.{stem}.weight"] = (f"model.layers.{layer}.{name}.weight", shape)
    return tensors


def original_weights(arch: str, tied: bool, seed: int = 0) -> dict[str, np.ndarray]:
    """Hugging Face name -> float32 values."""
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in layout(arch, tied).values()}


def converted(arch: str, gguf_name: str, weight: np.ndarray) -> np.ndarray:
    """What the converter makes of a weight: q and k rows in rotation pairs, Gemma norms plus one."""
    for stem, heads in (("attn_q", HEADS), ("attn_k", KV_HEADS)):
        if arch == "llama" and f".{stem}." in gguf_name:
            return weight.reshape(heads, 2, HEAD_DIM // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    if arch == "gemma3" and gguf_name.endswith("norm.weight"):
        return weight + 1
    return weight


def metadata(arch: str) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "context_length": 2048,
        "embedding_length": HIDDEN,
        "block_count": LAYERS,
        "feed_forward_length": FFN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 50_000.0,
    }
    if arch == "gemma3":
        fields["attention.sliding_window"] = 512
    return fields


def write_gguf(
    path: Path,
    arch: str = "llama",
    *,
    weights: Mapping[str, np.ndarray] | None = None,
    kind: str = "F32",
    kinds: Mapping[str, str] | None = None,
    tied: bool = True,
    fields: Mapping[str, Any] | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
    blocks: Mapping[str, tuple[str, np.ndarray]] | None = None,
    tensors_a_file: int = 0,
) -> Path:
    """Write a file; matrices are stored as ``kind``, vectors as F32. ``fields`` replaces metadata (None removes).

    ``kinds``: of matrices whose names hold a word. ``blocks``: tensors that are blocks already, as form and rows of
    bytes. ``tensors_a_file``: in several files, which are named after ``path``; the first one is returned.
    """
    writer = GGUFWriter(path, arch, split_max_tensors=tensors_a_file)
    for key, value in (metadata(arch) | dict(fields or {})).items():
        if value is not None:
            add_field(writer, f"{arch}.{key}", value)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(7)
    writer.add_bos_token_id(1)
    given = weights if weights is not None else original_weights(arch, tied)
    for gguf_name, (name, _) in layout(arch, tied).items():
        stored = converted(arch, gguf_name, given[name])
        own = next((found for word, found in (kinds or {}).items() if word in gguf_name), kind)
        form = GGMLQuantizationType[own] if stored.ndim > 1 else GGMLQuantizationType.F32
        writer.add_tensor(gguf_name, quants.quantize(stored, form), raw_dtype=form)
    for gguf_name, tensor in (extra or {}).items():
        writer.add_tensor(gguf_name, tensor)
    for gguf_name, (form_name, rows) in (blocks or {}).items():
        writer.add_tensor(gguf_name, rows, raw_dtype=GGMLQuantizationType[form_name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if path.exists() else sorted(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))[0]


def add_field(writer: GGUFWriter, key: str, value: Any) -> None:
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    adders.get(type(value), writer.add_array)(key, value)


_HALVES = {
    "Q2_K": ((80, 1.0), (82, 1.5)),
    "Q3_K": ((108, 1.0),),
    "Q4_K": ((0, 1.0), (2, 7.5)),
    "Q5_K": ((0, 1.0), (2, 15.5)),
    "Q6_K": ((208, 1.0),),
    "IQ4_NL": ((0, 1.0),),
    "IQ4_XS": ((0, 1.0),),
}
"""Where in a block its float16 lie: the scale of scales, and that of minima where there is one; and how large they are
beside each other for random numbers to be zero in the mean."""


def blocks_like(weight: np.ndarray, form: GGMLQuantizationType, seed: int) -> np.ndarray:
    """Rows of bytes: ``weight`` in a form, or random blocks that are spread alike, where the package only reads it."""
    if form.name in BLOCK_TYPES:
        return quants.quantize(weight, form)
    n_values, n_bytes = GGML_QUANT_SIZES[form]
    blocks = np.random.default_rng(seed).integers(0, 256, (weight.size // n_values, n_bytes), dtype=np.uint8)

    def scaled(size: float) -> np.ndarray:
        for place, factor in _HALVES[form.name]:
            blocks[:, place : place + 2] = np.array([size * factor], np.float16).view(np.uint8)
        return blocks

    spread = quants.dequantize(scaled(1.0), form).std()
    return scaled(float(weight.std() / spread)).reshape(weight.shape[0], -1)
