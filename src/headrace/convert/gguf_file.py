"""GGUF files out of any checkpoint of an architecture that GGUF has: in floats, or rounded to Q8_0 or Q4_0.

Rounded tensors are those that loading with ``int8`` or ``int4`` rounds, to the same numbers and scales; with Q4_0 the
embedding and the head are in Q8_0. Vectors and routers are in float32, as llama.cpp wants them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headrace.core.errors import ConfigError
from headrace.quant.formats import BLOCK, BlockRows
from headrace.weights.checkpoint import Checkpoint

from .blocks import Rounded, rounded
from .gguf_fields import GgufFields, check_read_back, fields_of, need_gguf
from .gguf_stored import Stored, stored_as

FORMS = {"F32": None, "F16": None, "BF16": None, "Q8_0": "int8", "Q4_0": "int4"}
"""Form -> the mode whose rounding it holds."""
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}
"""llama.cpp's ``general.file_type``."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    """In the file."""
    parts: tuple[str, ...]
    """In the checkpoint: one, or one for each expert."""
    shape: tuple[int, ...]
    """Of all of them."""
    form: str
    stored: Stored


def write_gguf(checkpoint: Checkpoint, path: Path, form: str, advance: Callable[[int], None]) -> None:
    """Writes the file as a whole or not at all.

    Args:
        form: of matrices, of ``FORMS``.
        advance: takes how many weights have been written since the last call.

    Raises:
        ConfigError: there is a file already, or the model has no place in GGUF or in that form.
    """
    if form not in FORMS:
        raise ConfigError(f"--form {form}: there are {', '.join(FORMS)}")
    if path.suffix != ".gguf" or path.exists():
        raise ConfigError(f"{path}: " + ("there is a file already" if path.exists() else "the name must end in .gguf"))
    gguf = need_gguf()
    fields = fields_of(checkpoint)
    mode = FORMS[form]
    blocks = None if mode is None else rounded(checkpoint, mode)
    tensors = list(_tensors(checkpoint, fields, form, blocks))
    part = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(part, fields.arch)
    try:
        for key, (value, kind, of) in fields.values.items():
            writer.add_key_value(key, value, gguf.GGUFValueType(kind), of)
        writer.add_file_type(_FILE_TYPES[form])
        writer.add_quantization_version(2)
        for name, table in fields.tables.items():
            writer.add_tensor_info(name, table.shape, table.dtype, table.nbytes)
        for tensor in tensors:
            _announce(gguf, writer, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for table in fields.tables.values():
            writer.write_tensor_data(table)
        for tensor in tensors:
            writer.write_tensor_data(_data(checkpoint, tensor, blocks))
            advance(torch.Size(tensor.shape).numel())
        writer.close()
        check_read_back(checkpoint, part)
        part.rename(path)
    finally:
        writer.close()
        part.unlink(missing_ok=True)


def _tensors(checkpoint: Checkpoint, fields: GgufFields, form: str, blocks: Rounded | None) -> Iterator[_Tensor]:
    config = checkpoint.config()
    found: dict[str, list[tuple[int, str, Stored]]] = {}
    for name in checkpoint.names():
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        stored = stored_as(checkpoint.path, fields.arch, name, fields.head_dim)
        found.setdefault(stored.name, []).append((stored.expert or 0, name, stored))
    for stored_name, entries in found.items():
        entries.sort(key=lambda entry: entry[0])
        parts = tuple(name for _, name, _ in entries)
        stored = entries[0][2]
        shape = checkpoint.shape(parts[0])
        whole = shape if stored.expert is None else (len(parts), *shape)
        own = form
        if len(shape) == 1 or stored_name.endswith("ffn_gate_inp.weight"):
            own = "F32"
        elif blocks is not None:
            own = _block_form(checkpoint, parts[0], blocks)
        yield _Tensor(stored_name, parts, whole, own, stored)


def _block_form(checkpoint: Checkpoint, name: str, blocks: Rounded) -> str:
    width = checkpoint.shape(name)[-1]
    if name not in blocks.formats:
        return "F32"
    if width % BLOCK:
        raise ConfigError(
            f"{checkpoint.path}: rows of {name!r} have {width} values, and GGUF has whole blocks of {BLOCK} only; set"
            " --form to BF16, F16 or F32"
        )
    return "Q8_0" if blocks.formats[name].bits == 8 else "Q4_0"


def _announce(gguf: Any, writer: Any, tensor: _Tensor) -> None:
    kind = gguf.GGMLQuantizationType[tensor.form]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    n_bytes = torch.Size(tensor.shape).numel() // block * size
    shape = (*tensor.shape[:-1], tensor.shape[-1] // block * size)
    if tensor.form in ("F32", "F16"):
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(tensor.form.replace("F", "float")), n_bytes)
    else:
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), n_bytes, raw_dtype=kind)


def _data(checkpoint: Checkpoint, tensor: _Tensor, blocks: Rounded | None) -> np.ndarray:
    parts = []
    for name in tensor.parts:
        if tensor.form in _FLOATS:
            values = tensor.stored.change(checkpoint.tensor(name).float()).to(_FLOATS[tensor.form]).contiguous()
            parts.append(values.view(torch.uint8) if tensor.form == "BF16" else values)
        elif blocks is not None:
            parts.append(torch.cat([_bytes(rows) for _, rows in blocks.rows(name)]))
    if tensor.form not in _FLOATS:
        # Whole rows change places.
        parts = [tensor.stored.change(part) for part in parts]
    return (parts[0] if tensor.stored.expert is None else torch.stack(parts)).contiguous().numpy()


def _bytes(rows: BlockRows) -> torch.Tensor:
    """[n, bytes] uint8: scale, then 32 signed bytes, or 16 of two numbers each: i and i + 16."""
    numbers = rows.numbers.unflatten(1, (-1, BLOCK))
    if rows.format.bits == 8:
        numbers = numbers ^ 0x80
    else:
        numbers = numbers[..., :16] | (numbers[..., 16:] << 4)
    return torch.cat((rows.scales.contiguous().view(torch.uint8).unflatten(1, (-1, 2)), numbers), 2).flatten(1)
