"""Small random adapters in the layout of peft, written by hand: no library stands between a test and the files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from headrace.weights.checkpoint import open_checkpoint
from headrace.weights.resolve import resolve_model

NOT_ADAPTED = (
    *("embed_tokens", "lm_head", "router", "experts", "kv_b_proj", "conv1d", "norm", ".gate"),
    *("cross_attn.k_proj", "cross_attn.v_proj", "vision_model"),
)
"""Parts of the names of matrices that take no adapter."""


def linear_maps(model: Path | str) -> dict[str, tuple[int, int]]:
    """Module -> (n_out, n_in): the maps that take adapters, in all families."""
    checkpoint = open_checkpoint(resolve_model(str(model)).path)
    shapes = {name: tuple(checkpoint.shape(name)) for name in checkpoint.names() if name.endswith(".weight")}
    # Layers that only draft take none.
    drafting = ("mtp.", f"model.layers.{checkpoint.config().get('num_hidden_layers')}.")
    checkpoint.close()
    return {
        name.removesuffix(".weight"): shape
        for name, shape in shapes.items()
        if len(shape) == 2
        and not name.startswith(drafting)
        and ("layers." in name or "encoder.layer." in name)
        and not any(f"{part}." in name for part in NOT_ADAPTED)
    }


def write_adapter(
    folder: Path, maps: Mapping[str, tuple[int, int]], *, seed: int, rank: int = 4, size: float = 0.5, **config: Any
) -> Path:
    """An adapter over ``maps`` that moves their outputs by about ``size`` of their inputs."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (n_out, n_in) in maps.items():
        a = torch.randn(rank, n_in, generator=random) * n_in**-0.5
        b = torch.randn(n_out, rank, generator=random) * (size * rank**-0.5)
        tensors[f"base_model.model.{name}.lora_A.weight"] = a
        tensors[f"base_model.model.{name}.lora_B.weight"] = b
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    fields = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, **config}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return folder
