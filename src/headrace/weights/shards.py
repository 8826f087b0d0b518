"""Writing tensors in the hub layout: one safetensors file, or several and an index of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch

_SINGLE = "model.safetensors"


def write_shards(folder: Path, tensors: Iterable[tuple[str, torch.Tensor]], shard_bytes: int | None = None) -> None:
    """Files of ``shard_bytes`` at most, or of one tensor; None: one file. Holds the tensors of one file at a time."""
    from safetensors.torch import save_file

    files: list[Path] = []
    weight_map: dict[str, int] = {}
    total, size = 0, 0
    shard: dict[str, torch.Tensor] = {}

    def write() -> None:
        files.append(folder / f"model-{len(files) + 1:05}.part")
        save_file(shard, files[-1], {"format": "pt"})
        shard.clear()

    for name, tensor in tensors:
        if shard_bytes is not None and shard and size + tensor.nbytes > shard_bytes:
            write()
            size = 0
        shard[name] = tensor.contiguous()
        weight_map[name] = len(files)
        size += tensor.nbytes
        total += tensor.nbytes
    write()
    # Only now it is known how many there are.
    if len(files) == 1:
        files[0].rename(folder / _SINGLE)
        return
    names = [f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    for file, name in zip(files, names, strict=True):
        file.rename(folder / name)
    index = {"metadata": {"total_size": total}, "weight_map": {name: names[at] for name, at in weight_map.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
