"""Where a tensor goes in a GGUF file, and what becomes of its numbers there: what reading the file undoes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from headrace.core.errors import CheckpointError
from headrace.weights.gguf_names import LAYER_NAMES, TOP

WRITTEN = ("llama", "qwen2", "qwen3", "qwen3moe", "gemma3", "phi3", "nemotron", "exaone4")
"""Architectures whose tensors stay as they are, but for names and what ``_change`` does."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor's name in a file, and its change."""

    name: str
    expert: int | None
    """Its place in a tensor of all experts of a layer."""
    change: Callable[[torch.Tensor], torch.Tensor]
    """Takes all rows."""


def stored_as(path: Path, arch: str, name: str, head_dim: int) -> Stored:
    """``name``: Hugging Face's; ``arch``: of ``WRITTEN``. Raises ``CheckpointError`` for a tensor without a place."""
    match = re.fullmatch(r"(?:model\.layers\.(\d+)\.)?(.+)\.(weight|bias)", name)
    if match is not None:
        layer, inner, kind = match.groups()
        for stem, pattern in (TOP if layer is None else LAYER_NAMES[arch]).items():
            found = re.fullmatch(re.escape(pattern).replace(r"\{expert\}", r"(\d+)"), inner)
            if found is not None:
                expert = int(found[1]) if found.re.groups else None
                prefix = "" if layer is None else f"blk.{layer}."
                return Stored(f"{prefix}{stem}.{kind}", expert, _change(arch, stem, kind, head_dim))
    raise CheckpointError(f"{path}: tensor {name!r} has no place in GGUF's architecture {arch!r}")


def _change(arch: str, stem: str, kind: str, head_dim: int) -> Callable[[torch.Tensor], torch.Tensor]:
    if arch == "llama" and stem in ("attn_q", "attn_k"):
        # Rows i and i + d/2 of each head go to 2i and 2i + 1.
        return lambda rows: rows.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)
    if arch in ("gemma3", "nemotron") and stem.endswith("norm") and kind == "weight":
        return lambda weight: weight.float() + 1
    return lambda rows: rows
