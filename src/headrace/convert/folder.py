"""Folders in the hub layout out of any checkpoint: in floats, or rounded to int8 or int4.

Rounded tensors are written as compressed-tensors has them (``pack-quantized``, groups of 32, float16 scales): what is
read back is what loading with ``int8`` or ``int4`` makes, bit for bit, embedding and head in 8 bits among it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from headrace.core.errors import ConfigError
from headrace.quant.formats import BlockFormat, BlockRows
from headrace.tokenizer.load import load_tokenizer
from headrace.weights.checkpoint import Checkpoint
from headrace.weights.few_bits import pack
from headrace.weights.shards import write_shards

from .blocks import Rounded, rounded

SHARD_BYTES = 4 * 10**9
Advance = Callable[[int], None]
"""Takes how many bytes of the source have been read since the last call."""

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".index.json")
_OWN = ("config.json", "hf_quant_config.json")


def write_folder(
    checkpoint: Checkpoint, folder: Path, mode: str | None, dtype: torch.dtype | None, advance: Advance
) -> None:
    """Writes config, weights, and what else the source has.

    Args:
        folder: empty, or not there.
        mode: of ``ROUNDED``, or None: floats.
        dtype: of floats; None: as each tensor is read: as stored, or float32 where it is stored in fewer bits.

    Raises:
        ConfigError: the folder is in use, or the model is not one that can be written so.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: there is something already; give a new folder")
    blocks = None if mode is None else rounded(checkpoint, mode)
    folder.mkdir(parents=True, exist_ok=True)
    write_shards(folder, _tensors(checkpoint, blocks, dtype, advance), SHARD_BYTES)
    config = checkpoint.config()
    if dtype is not None:
        config.pop("torch_dtype", None)
        config["dtype"] = str(dtype).removeprefix("torch.")
    if blocks is not None:
        config["quantization_config"] = _quantization(checkpoint, blocks)
    _write_json(folder / "config.json", config)
    _write_beside(checkpoint, folder)


def _tensors(
    checkpoint: Checkpoint, blocks: Rounded | None, dtype: torch.dtype | None, advance: Advance
) -> Iterator[tuple[str, torch.Tensor]]:
    for name in checkpoint.names():
        shape = checkpoint.shape(name)
        if blocks is not None and name in blocks.formats:
            yield from _packed(name, shape, blocks)
        else:
            out = torch.empty(shape, dtype=dtype or checkpoint.dtype(name))
            checkpoint.read_into(name, out)
            yield name, out
        advance(torch.Size(shape).numel())


def _packed(name: str, shape: tuple[int, ...], blocks: Rounded) -> Iterator[tuple[str, torch.Tensor]]:
    form = blocks.formats[name]
    numbers: list[torch.Tensor] = []
    scales: list[torch.Tensor] = []
    for _, rows in blocks.rows(name):
        numbers.append(pack(_whole_words(rows, form), form.bits))
        scales.append(rows.scales)
    yield f"{name}_packed", torch.cat(numbers)
    yield f"{name}_scale", torch.cat(scales)
    yield f"{name}_shape", torch.tensor(shape, dtype=torch.int64)


def _whole_words(rows: BlockRows, form: BlockFormat) -> torch.Tensor:
    return torch.nn.functional.pad(rows.numbers, (0, -rows.numbers.shape[1] % (32 // form.bits)))


def _quantization(checkpoint: Checkpoint, blocks: Rounded) -> dict[str, Any]:
    """As compressed-tensors writes it: a group of modules for each number of bits."""
    modules: dict[BlockFormat, list[str]] = {}
    for name, form in blocks.formats.items():
        modules.setdefault(form, []).append(name.removesuffix(".weight"))
    groups = {
        f"group_{index}": {
            "targets": names,
            "format": "pack-quantized",
            "weights": {
                "num_bits": form.bits,
                "type": "int",
                "symmetric": True,
                "strategy": "group",
                "group_size": form.group,
            },
            "input_activations": None,
        }
        for index, (form, names) in enumerate(modules.items())
    }
    floats = [name for name in checkpoint.names() if name not in blocks.formats and len(checkpoint.shape(name)) == 2]
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [name.removesuffix(".weight") for name in floats],
    }


def _write_beside(checkpoint: Checkpoint, folder: Path) -> None:
    """Tokenizer, template, defaults of generation: a folder's files as they are, or what a GGUF file has of them."""
    if checkpoint.path.is_dir():
        for file in checkpoint.path.iterdir():
            if file.is_file() and not file.name.endswith(_WEIGHTS) and file.name not in _OWN:
                shutil.copyfile(file, folder / file.name)
        return
    tokenizer = load_tokenizer(checkpoint.path)
    defaults = checkpoint.generation_config()
    # All that end a sequence, those among them that a GGUF file knows by their text alone.
    _write_json(folder / "generation_config.json", defaults | {"eos_token_id": sorted(tokenizer.eos_ids)})
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", tokenizer.special_tokens)
    for name, template in tokenizer.chat_templates.items():
        file = folder / "chat_template.jinja"
        if name != "default":
            file = folder / "additional_chat_templates" / f"{name}.jinja"
            file.parent.mkdir(exist_ok=True)
        file.write_text(template, encoding="utf-8")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
