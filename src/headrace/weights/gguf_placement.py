"""Tensors of the hub out of those of a GGUF file: what the conversion to GGUF did to them, undone.

Source: ``convert_hf_to_gguf.py`` of llama.cpp (https://github.com/ggml-org/llama.cpp). What it changes:

- archs ``llama`` (Mistral too) and ``nemotron_h``: rows of q and k are reordered per head, from halves
  (x[:d/2], x[d/2:]) to pairs (x[2i], x[2i+1]);
- archs ``gemma3``, ``nemotron`` and ``qwen3next``: norm weights are stored as 1 + w;
- the matrices of a layer's experts are one tensor, [experts, rows, columns];
- decays of recurrent layers are stored as -exp(A_log), filters without their middle dimension, which is 1;
- what is one tensor on the hub may be several: ``_MADE`` has them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from headrace.core.errors import CheckpointError

from .gguf_names import LAYER_NAMES, TOP, TOP_NAMES
from .gguf_reader import TensorInfo
from .gguf_recipes import Recipe, alone, beside, by_key_head, input_major, latent_halves, of_expert

Make = Callable[[Sequence[TensorInfo], Path, Mapping[str, Any]], Recipe]
"""From tensors of a layer and the Hugging Face fields. Raises CheckpointError for shapes that do not fit."""


_GATE_UP = ("ffn_gate_exps.weight", "ffn_up_exps.weight")
_MADE: dict[str, dict[str, tuple[tuple[str, ...], Make]]] = {
    "deepseek2": {
        "self_attn.kv_b_proj.weight": (
            ("attn_k_b.weight", "attn_v_b.weight"),
            lambda infos, path, config: latent_halves(infos, path),
        )
    },
    "gpt-oss": {
        "mlp.experts.gate_up_proj": (
            _GATE_UP,
            lambda infos, path, config: input_major(infos, path, interleaved=True),
        ),
        "mlp.experts.gate_up_proj_bias": (
            ("ffn_gate_exps.bias", "ffn_up_exps.bias"),
            lambda infos, path, config: beside(infos, path),
        ),
        "mlp.experts.down_proj": (("ffn_down_exps.weight",), lambda infos, path, config: input_major(infos, path)),
    },
    "llama4": {
        "feed_forward.experts.gate_up_proj": (_GATE_UP, lambda infos, path, config: input_major(infos, path)),
        "feed_forward.experts.down_proj": (
            ("ffn_down_exps.weight",),
            lambda infos, path, config: input_major(infos, path),
        ),
    },
    "qwen3next": {
        "linear_attn.in_proj_qkvz.weight": (
            ("attn_qkv.weight", "attn_gate.weight"),
            lambda infos, path, config: by_key_head(
                infos, path, n_heads=config["linear_num_key_heads"], key_rows=config["linear_key_head_dim"]
            ),
        )
    },
}
"""What is made of several tensors of a layer: architecture -> name in the layer -> (theirs, how)."""


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor of the file by the parts of its name."""

    info: TensorInfo
    layer: str | None
    stem: str
    key: str
    """Stem and kind: ``attn_q.weight``."""

    @property
    def prefix(self) -> str:
        return "" if self.layer is None else f"layers.{int(self.layer)}."


def recipes(path: Path, arch: str, infos: Sequence[TensorInfo], config: Mapping[str, Any]) -> dict[str, Recipe]:
    """Hugging Face names, and how each is made of the tensors ``infos``, all of which have their place.

    ``config``: Hugging Face fields. Raises ``CheckpointError`` for a tensor that has none, and for shapes.
    """
    stored = {info.name: _parsed(path, arch, info) for info in infos}
    base = "backbone" if arch in TOP_NAMES else "model"
    found: dict[str, Recipe] = {}
    taken: set[str] = set()
    for one in stored.values():
        if one.info.name in taken:
            continue
        made = next((item for item in _MADE.get(arch, {}).items() if one.key in item[1][0]), None)
        if made is None or one.layer is None:
            found |= _placed(path, arch, one, base, config)
            continue
        name, (keys, make) = made
        parts = [stored.get(f"blk.{one.layer}.{key}") for key in keys]
        if any(part is None for part in parts):
            raise CheckpointError(f"{path}: tensor {one.info.name!r} is there, but not all of {', '.join(keys)}")
        taken |= {part.info.name for part in parts if part is not None}
        found[f"{base}.{one.prefix}{name}"] = make([part.info for part in parts if part is not None], path, config)
    return found


def _parsed(path: Path, arch: str, info: TensorInfo) -> _Stored:
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?([a-z0-9_]+)(\.(?:weight|bias))?", info.name)
    if match is None:
        raise _homeless(path, arch, info)
    return _Stored(info, match[1], match[2], match[2] + (match[3] or ""))


def _homeless(path: Path, arch: str, info: TensorInfo) -> CheckpointError:
    return CheckpointError(f"{path}: tensor {info.name!r} has no place in architecture {arch!r}")


def _placed(path: Path, arch: str, one: _Stored, base: str, config: Mapping[str, Any]) -> dict[str, Recipe]:
    """What one tensor is alone: one of the hub's, or one for each expert."""
    table = TOP_NAMES.get(arch, TOP) if one.layer is None else LAYER_NAMES[arch]
    name, kind = table.get(one.key), one.key.removeprefix(one.stem)
    if name is None:
        if one.stem not in table or (one.stem == one.key):
            raise _homeless(path, arch, one.info)
        name = table[one.stem] + kind
    name = name if one.layer is None else f"{base}.{one.prefix}{name}"
    if "{expert}" not in name:
        return {name: _undone(path, arch, one, config)}
    if len(one.info.shape) != 3:
        raise CheckpointError(
            f"{path}: tensor {one.info.name!r}: expected [experts, rows, columns], found {list(one.info.shape)}"
        )
    parts = [of_expert(one.info, expert) for expert in range(one.info.shape[0])]
    return {name.format(expert=i): alone(part, _as_is, part.shape) for i, part in enumerate(parts)}


def _undone(path: Path, arch: str, one: _Stored, config: Mapping[str, Any]) -> Recipe:
    info = one.info
    if arch in _IN_PAIRS and one.stem in ("attn_q", "attn_k"):
        head_dim = config["head_dim"]
        if info.shape[0] % head_dim:
            raise CheckpointError(
                f"{path}: tensor {info.name!r}: expected a multiple of {head_dim} rows (the head width), "
                f"found shape {list(info.shape)}"
            )
        return alone(info, partial(_pairs_to_halves, head_dim=head_dim), info.shape, head_dim)
    if arch in _PLUS_ONE and one.stem.endswith("norm") and one.stem != "ssm_norm" and one.key.endswith("weight"):
        return alone(info, _minus_one, info.shape)
    n = info.numel
    if one.stem == "ssm_conv1d" and len(info.shape) == 2:
        return alone(info, lambda rows: rows.unsqueeze(1), (info.shape[0], 1, info.shape[1]))
    if one.stem == "ssm_a":
        return alone(info, lambda rows: rows.neg().float().log().flatten(), (n,))
    if one.stem in ("ssm_d", "ssm_norm"):
        return alone(info, torch.flatten, (n,))
    if one.stem == "ffn_gate_inp_shexp":
        return alone(info, lambda rows: rows.view(1, -1), (1, n))
    return alone(info, _as_is, info.shape)


_IN_PAIRS = ("llama", "nemotron_h", "nemotron_h_moe")
_PLUS_ONE = ("gemma3", "nemotron", "qwen3next")


def _pairs_to_halves(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows 2i, 2i + 1 of each head go to i, i + d/2."""
    return rows.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


def _minus_one(weight: torch.Tensor) -> torch.Tensor:
    return weight.float() - 1


def _as_is(rows: torch.Tensor) -> torch.Tensor:
    return rows
