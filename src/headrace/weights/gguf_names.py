"""GGUF tensor names to Hugging Face names, and what the conversion to GGUF did to a tensor, undone.

Source of both: ``convert_hf_to_gguf.py`` and ``gguf-py/gguf/tensor_mapping.py`` of llama.cpp
(https://github.com/ggml-org/llama.cpp). Two changes are made on the way to GGUF:

- arch ``llama`` (Mistral too): rows of q and k are reordered per head, from halves (x[:d/2], x[d/2:]) to pairs (x[2i],
  x[2i+1]);
- archs ``gemma3`` and ``nemotron``: norm weights are stored as 1 + w;
- the matrices of a layer's experts are one tensor, [experts, rows, columns].
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from headrace.core.errors import CheckpointError

Undo = Callable[[torch.Tensor], torch.Tensor]
"""Takes whole rows (or a whole vector), gives as many."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The Hugging Face name of a tensor, and how its numbers become those of the original."""

    name: str
    """With ``{expert}`` in it where the tensor holds the matrices of all experts of a layer."""
    undo: Undo
    rows: int = 1
    """``undo`` works on multiples of this many rows."""


_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}

_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QK_NORM = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_PRE_NORM = {"ffn_norm": "post_attention_layernorm"}
_POST_NORM = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_MIXTRAL = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{expert}.w1",
    "ffn_up_exps": "block_sparse_moe.experts.{expert}.w3",
    "ffn_down_exps": "block_sparse_moe.experts.{expert}.w2",
}
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{expert}.gate_proj",
    "ffn_up_exps": "mlp.experts.{expert}.up_proj",
    "ffn_down_exps": "mlp.experts.{expert}.down_proj",
}
_FUSED = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}


def _without(names: dict[str, str], *absent: str) -> dict[str, str]:
    return {stem: name for stem, name in names.items() if stem not in absent}


_LAYER_NAMES = {
    "llama": _LAYER | _PRE_NORM | _MIXTRAL,
    "qwen2": _LAYER | _PRE_NORM,
    "qwen3": _LAYER | _PRE_NORM | _QK_NORM,
    "qwen3moe": _LAYER | _PRE_NORM | _QK_NORM | _EXPERTS,
    "gemma3": _LAYER | _POST_NORM | {"ffn_norm": "pre_feedforward_layernorm"} | _QK_NORM,
    "phi3": _without(_LAYER, "attn_q", "attn_k", "attn_v", "ffn_gate") | _PRE_NORM | _FUSED,
    "nemotron": _without(_LAYER, "ffn_gate") | _PRE_NORM,
    "exaone4": _without(_LAYER, "attn_norm") | _POST_NORM | _QK_NORM,
}

_TABLES = re.compile(r"(rope_freqs|rope_factors_long|rope_factors_short|blk\.\d+\.attn_rot_embd)\.weight")
"""Tables computed from the configuration, not weights."""


def is_weight(gguf_name: str) -> bool:
    """False for rope tables, which the configuration covers."""
    return not _TABLES.fullmatch(gguf_name)


def place(path: Path, arch: str, gguf_name: str, config: dict[str, Any]) -> Placement:
    """Where a tensor belongs (``config``: Hugging Face fields). An unknown one raises ``CheckpointError``."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?([a-z_]+)\.(weight|bias)", gguf_name)
    table = _TOP if match and match[1] is None else _LAYER_NAMES[arch]
    if match is None or match[2] not in table:
        raise CheckpointError(f"{path}: tensor {gguf_name!r} has no place in architecture {arch!r}")
    layer, stem, kind = match.groups()
    prefix = "" if layer is None else f"model.layers.{int(layer)}."
    return Placement(f"{prefix}{table[stem]}.{kind}", *_undo(arch, stem, kind, config))


def _undo(arch: str, stem: str, kind: str, config: dict[str, Any]) -> tuple[Undo, int]:
    if arch == "llama" and stem in ("attn_q", "attn_k"):
        head_dim = config["head_dim"]
        return (lambda rows: _pairs_to_halves(rows, head_dim)), head_dim
    if arch in ("gemma3", "nemotron") and stem.endswith("norm") and kind == "weight":
        return _minus_one, 1
    return _as_is, 1


def _pairs_to_halves(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows 2i, 2i + 1 of each head go to i, i + d/2."""
    return rows.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


def _minus_one(weight: torch.Tensor) -> torch.Tensor:
    return weight.float() - 1


def _as_is(rows: torch.Tensor) -> torch.Tensor:
    return rows
