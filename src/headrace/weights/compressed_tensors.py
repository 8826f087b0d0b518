"""compressed-tensors: whole numbers, FP8 and FP4, by what lies beside each weight.

Of a matrix [n, k], with ``P.weight_scale`` of one value, of [n, 1], of [n, groups], or of blocks:

    pack-quantized     P.weight_packed int32 [n, k b / 32], the lowest bits first; P.weight_shape; zeros, where there
                       are any, P.weight_zero_point int32 [n b / 32, groups], packed along n
    int-quantized      P.weight int8; P.weight_zero_point int8 like the scales
    float-quantized    P.weight e4m3
    nvfp4-pack         P.weight_packed uint8 [n, k / 2]; scales e4m3 [n, k / 16], over P.weight_global_scale
    mxfp4-pack         P.weight_packed uint8 [n, k / 2]; scales uint8 [n, k / 32], powers of two

Packed numbers and zeros have half of their range added. A value is (number - zero) * scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from headrace.core.errors import CheckpointError, ModelError

from . import fp8, modelopt, mxfp4
from .few_bits import words
from .forms import Found, check_part
from .grouped import Grouped, Parts
from .safetensors import SafetensorsCheckpoint

_PARTS = ("weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape", "weight_global_scale")
_UNUSED = (*fp8.UNUSED, "input_zero_point", "input_global_scale", "output_zero_point")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def find(stored: SafetensorsCheckpoint, config: Mapping[str, Any]) -> Found:
    """Raises ModelError for a layout that is not known, CheckpointError for parts that do not fit together."""
    sparsity = config.get("sparsity_config") or {}
    if sparsity.get("format", "dense") != "dense":
        raise ModelError(
            f"{stored.path}: quantization_config.sparsity_config.format must be 'dense', got {sparsity['format']!r}"
        )
    turned = (config.get("transform_config") or {}).get("config_groups")
    if turned:
        raise ModelError(
            f"{stored.path}: quantization_config.transform_config turns weights and activations ({', '.join(turned)}),"
            " which is not supported; it must be empty: take a folder that was quantised without transforms"
        )
    names = frozenset(stored.names())
    blocks, sizes = _block_sizes(config), _group_sizes(config)
    forms: dict[str, Grouped] = {}
    hidden = {name for name in names if name.rpartition(".")[2] in _UNUSED}
    for name in names:
        base, _, end = name.rpartition("weight")
        end = end.removeprefix("_")
        if end not in ("", "packed") or f"{base}weight_scale" not in names:
            continue
        forms[f"{base}weight"] = _form(stored, names, base, name, blocks, sizes)
        hidden |= {name, *(base + part for part in _PARTS if base + part in names)}
    return Found(forms, frozenset(hidden))


def _form(
    stored: SafetensorsCheckpoint,
    names: frozenset[str],
    base: str,
    name: str,
    blocks: tuple[int, int] | None,
    sizes: frozenset[int],
) -> Grouped:
    scales, dtype = f"{base}weight_scale", stored.dtype(name)
    if dtype == torch.float8_e4m3fn:
        return fp8.matrix(stored, name, scales, blocks, "compressed-tensors FP8")
    if dtype == torch.uint8 and f"{base}weight_global_scale" in names:
        factor = stored.tensor(f"{base}weight_global_scale").float().reshape(()).reciprocal()
        return modelopt.nvfp4(stored, f"{base}weight", name, scales, factor, None, "compressed-tensors NVFP4")
    if dtype == torch.uint8:
        return mxfp4.matrix(stored, name, scales, "compressed-tensors MXFP4")
    if dtype in (torch.int8, torch.int32):
        return _whole(stored, names, base, name, sizes)
    raise CheckpointError(f"{stored.file_of(name)}: tensor {name!r} is {dtype}, and has scales: no form that is known")


def _whole(
    stored: SafetensorsCheckpoint, names: frozenset[str], base: str, name: str, sizes: frozenset[int]
) -> Grouped:
    is_packed = stored.dtype(name) == torch.int32
    n_out, width = stored.shape(name)
    n_in = int(stored.tensor(f"{base}weight_shape")[1]) if is_packed else width
    bits = _bits(stored, name, width, n_in) if is_packed else 8
    scales, zeros, index = (base + end for end in _PARTS[:3])
    found = stored.shape(scales)
    per_row = (n_out, found[1] if len(found) == 2 and found[0] == n_out else 1)
    if found not in (per_row, (n_out,)) and found not in ((), (1,), (1, 1)):
        raise CheckpointError(
            f"{stored.file_of(scales)}: tensor {scales!r} of {list(found)} does not fit {name!r} of [{n_out}, {n_in}]"
        )
    check_part(stored, scales, _FLOATS, found)
    n_groups = per_row[1]
    # The last group may be short: then their number alone does not tell how many share a scale.
    group = next((size for size in sizes if -(-n_in // size) == n_groups), -(-n_in // n_groups))
    columns = stored.tensor(index) if index in names else None
    if columns is not None and torch.equal(columns.long(), torch.arange(n_in) // group):
        columns = None
    has_zeros = zeros in names
    return Grouped(
        shape=(n_out, n_in),
        label=f"compressed-tensors in {bits} bits",
        stored=name,
        bits=bits,
        group=group,
        open=partial(_open, stored, base, name, bits, n_in, has_zeros),
        zero=None if has_zeros else 1 << (bits - 1),
        has_half_scales=stored.dtype(scales) == torch.float16,
        columns=columns,
    )


def _open(stored: SafetensorsCheckpoint, base: str, name: str, bits: int, n_in: int, has_zeros: bool) -> Parts:
    n_out, half = stored.shape(name)[0], 1 << (bits - 1)
    is_packed = stored.dtype(name) == torch.int32
    scales = _by_row(stored.tensor(f"{base}weight_scale"), n_out)

    def numbers(first: int, last: int) -> torch.Tensor:
        part = stored.part(name, first, last)
        return words(part, bits)[:, :n_in].contiguous() if is_packed else part.view(torch.uint8) ^ 0x80

    if not has_zeros:
        return Parts(numbers, lambda first, last: scales[first:last])
    stored_zeros = stored.tensor(f"{base}weight_zero_point")
    if stored_zeros.dtype == torch.int32:
        zeros = words(stored_zeros.T.contiguous(), bits).T[:n_out]
    else:
        zeros = _by_row((stored_zeros.int() + half).to(torch.uint8), n_out)
    return Parts(numbers, lambda first, last: scales[first:last], lambda first, last: zeros[first:last])


def _by_row(tensor: torch.Tensor, n_out: int) -> torch.Tensor:
    """[n_out, groups] of one value, or of as many as there are."""
    return tensor.reshape(1, 1).expand(n_out, 1) if tensor.numel() == 1 else tensor.reshape(n_out, -1)


def _bits(stored: SafetensorsCheckpoint, name: str, width: int, n_in: int) -> int:
    for bits in (4, 8):
        if width == -(-n_in * bits // 32):
            return bits
    raise CheckpointError(
        f"{stored.file_of(name)}: tensor {name!r} holds {32 * width / n_in:g} bits for each of {n_in} inputs; packed"
        " numbers are read in 4 and 8 bits"
    )


def _group_sizes(config: Mapping[str, Any]) -> frozenset[int]:
    groups = (config.get("config_groups") or {}).values()
    sizes = ((group.get("weights") or {}).get("group_size") for group in groups)
    return frozenset(size for size in sizes if isinstance(size, int) and size > 0)


def _block_sizes(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Of the first group that has scales of blocks."""
    groups = config.get("config_groups") or {}
    for group in groups.values():
        size = (group.get("weights") or {}).get("block_structure")
        if isinstance(size, list | tuple) and len(size) == 2:
            return int(size[0]), int(size[1])
    return None
