"""Linear layers in the forms of quantised checkpoints: the tensors of the files, and the values they stand for.

compressed-tensors are written and unpacked by that package. GPTQ, AWQ and ModelOpt are written from the statement of
their layouts in ``headrace.weights``: their packages cannot be installed beside torch alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from headrace.weights.checkpoint import open_checkpoint
from headrace.weights.dummy import write_safetensors

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Form:
    """``write(weight [n, k], seed)`` gives what follows ``P.`` in names -> tensors, and the values, float32."""

    config: dict[str, Any]
    write: Callable[[torch.Tensor], tuple[Tensors, torch.Tensor]]
    kept: bool = True
    """There are kernels."""
    tolerance: float = 0.0
    """Of values, of the largest: where two scales are multiplied in another order, or zeros with scales in float32."""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """JSON files beside ``config.json``."""


def _rounded(weight: torch.Tensor, bits: int, group: int, *, zeros: bool) -> tuple[torch.Tensor, ...]:
    """Numbers [n, k], float16 scales and zeros [n, groups] of a weight."""
    parts = weight.unflatten(1, (-1, group if group > 0 else weight.shape[1]))
    top = (1 << bits) - 1
    low, high = (parts.amin(2), parts.amax(2)) if zeros else (-parts.abs().amax(2), parts.abs().amax(2))
    scales = ((high - low) / top).half()
    zero = (-low / scales.float()).round().clamp(0, top) if zeros else torch.full_like(low, float(1 << (bits - 1)))
    numbers = (parts / scales.float().unsqueeze(2) + zero.unsqueeze(2)).round().clamp(0, top)
    return numbers.flatten(1).int(), scales, zero.int()


def _packed(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """[..., m] into int32 along the last dimension, the first in the lowest bits."""
    each = 32 // bits
    places = torch.arange(each) * bits
    return (numbers.long().unflatten(-1, (-1, each)) << places).sum(-1).to(torch.int32)


def _values(numbers: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    return (numbers - zeros[:, groups]).float() * scales.float()[:, groups]


def _gptq(bits: int, group: int, *, sym: bool, version: int = 1, desc_act: bool = False) -> Form:
    def write(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        n_in = weight.shape[1]
        size = group if group > 0 else n_in
        order = torch.randperm(n_in, generator=torch.Generator().manual_seed(n_in)) if desc_act else torch.arange(n_in)
        numbers, scales, zeros = _rounded(weight[:, order], bits, group, zeros=not sym)
        back = order.argsort()
        numbers, groups = numbers[:, back], (torch.arange(n_in) // size)[back]
        # As GPTQModel does it: from the words, so that a zero of 0 borrows from the one above it.
        taken = sum(1 << place for place in range(0, 32, bits)) if version == 1 else 0
        tensors = {
            "qweight": _packed(numbers, bits).T.contiguous(),
            "qzeros": _packed(zeros.T, bits) - taken,
            "scales": scales.T.contiguous(),
            "g_idx": groups.int(),
        }
        return tensors, _values(numbers, scales, zeros, groups)

    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": sym, "desc_act": desc_act}
    if version == 2:
        config["checkpoint_format"] = "gptq_v2"
    return Form(config, write, kept=not desc_act)


def _awq(group: int) -> Form:
    def write(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        numbers, scales, zeros = _rounded(weight, 4, group, zeros=True)

        def packed(tensor: torch.Tensor) -> torch.Tensor:
            order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
            return _packed(tensor.T.unflatten(1, (-1, 8))[:, :, order].flatten(1), 4)

        tensors = {"qweight": packed(numbers), "qzeros": packed(zeros), "scales": scales.T.contiguous()}
        return tensors, _values(numbers, scales, zeros, torch.arange(weight.shape[1]) // group)

    config = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    return Form(config, write)


def _compressed(format_: str, tolerance: float = 0.0, kept: bool = True, **arguments: Any) -> Form:
    """By the package: ``arguments`` of its ``QuantizationArgs``."""

    def write(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        from compressed_tensors.compressors import BaseCompressor, unpack_fp4_from_uint8
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
        from compressed_tensors.quantization.lifecycle.forward import dequantize
        from compressed_tensors.quantization.utils import calculate_qparams

        args = QuantizationArgs(**arguments)
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        low, high = _extremes(weight, args)
        state: Tensors = {"weight": weight}
        if format_ == "nvfp4-pack-quantized":
            state["weight_global_scale"] = (448.0 * 6.0 / weight.abs().max()).reshape(1)
        scale, zero = calculate_qparams(low, high, args, global_scale=state.get("weight_global_scale"))
        state["weight_scale"] = scale
        if not args.symmetric:
            state["weight_zero_point"] = zero.to(torch.int8)
        compressor = BaseCompressor.get_value_from_registry(format_)
        tensors = compressor.compress(state, scheme)
        values = compressor.decompress(tensors, scheme)["weight"].float()
        if format_ == "nvfp4-pack-quantized":
            # Its own values are in bfloat16.
            packed = unpack_fp4_from_uint8(tensors["weight_packed"], *weight.shape, dtype=torch.float32)
            scale, whole = tensors["weight_scale"].float(), tensors["weight_global_scale"]
            values = dequantize(packed, scale, args=args, dtype=torch.float32, global_scale=whole)
        return {name: value.data for name, value in tensors.items() if value is not None}, values

    group = {"targets": ["Linear"], "weights": dict(arguments), "input_activations": None}
    config = {"quant_method": "compressed-tensors", "format": format_, "config_groups": {"group_0": group}}
    return Form(config, write, kept, tolerance)


def _extremes(weight: torch.Tensor, args: Any) -> tuple[torch.Tensor, torch.Tensor]:
    if args.strategy == "tensor":
        return weight.min().reshape(1), weight.max().reshape(1)
    if args.strategy == "block":
        height, width = args.block_structure
        padded = torch.nn.functional.pad(weight, (0, -weight.shape[1] % width, 0, -weight.shape[0] % height))
        blocks = padded.unflatten(0, (-1, height)).unflatten(2, (-1, width)).transpose(1, 2).flatten(2)
    elif args.strategy == "channel":
        blocks = weight.unsqueeze(1)
    else:
        blocks = weight.unflatten(1, (-1, args.group_size))
    return blocks.amin(2), blocks.amax(2)


def _modelopt_fp8(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    scale = weight.abs().max() / 448
    stored = (weight / scale).to(torch.float8_e4m3fn)
    tensors = {"weight": stored, "weight_scale": scale, "input_scale": torch.tensor(0.1)}
    return tensors, stored.float() * scale


def _fp8_blocks(height: int, width: int) -> Form:
    """As DeepSeek-V3 and Qwen3's FP8 folders."""

    def write(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        n, k = weight.shape
        padded = torch.nn.functional.pad(weight, (0, -k % width, 0, -n % height))
        scales = padded.unflatten(0, (-1, height)).unflatten(2, (-1, width)).abs().amax((1, 3)) / 448
        spread = scales.repeat_interleave(height, 0).repeat_interleave(width, 1)[:n, :k]
        stored = (weight / spread).to(torch.float8_e4m3fn)
        return {"weight": stored, "weight_scale_inv": scales}, stored.float() * spread

    return Form({"quant_method": "fp8", "weight_block_size": [height, width]}, write)


_E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def _modelopt_nvfp4(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    parts = weight.unflatten(1, (-1, 16))
    second = weight.abs().max() / (6 * 448)
    first = (parts.abs().amax(2) / 6 / second).to(torch.float8_e4m3fn)
    scales = first.float() * second
    sizes = (parts / scales.unsqueeze(2)).abs()
    codes = (sizes.unsqueeze(3) - _E2M1).abs().argmin(3) + torch.where(parts < 0, 8, 0)
    values = (_E2M1[codes & 7] * torch.where(codes > 7, -1.0, 1.0) * scales.unsqueeze(2)).flatten(1)
    codes = codes.flatten(1).to(torch.uint8)
    tensors = {
        "weight": codes[:, ::2] | (codes[:, 1::2] << 4),
        "weight_scale": first,
        "weight_scale_2": second,
        "input_scale": torch.tensor(0.1),
    }
    return tensors, values


def _modelopt(algorithm: str, write: Callable[[torch.Tensor], tuple[Tensors, torch.Tensor]]) -> Form:
    """As older versions write it, with nothing in ``config.json``."""
    quantization = {"quant_algo": algorithm, "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}
    return Form({}, write, files={"hf_quant_config.json": {"quantization": quantization}})


def is_projection(name: str, weight: torch.Tensor) -> bool:
    return name.endswith("_proj.weight")


def is_matrix(name: str, weight: torch.Tensor) -> bool:
    """Of a layer's products, as publishers choose: no router, no gate of a few outputs, and no vision tower."""
    small = ("gate.weight", "router.weight", "_gate.weight", "in_proj_ba.weight")
    fits = weight.dim() == 2 and weight.shape[0] % 8 == 0 and weight.shape[1] % 32 == 0
    return fits and ".layers." in name and "vision" not in name and not name.endswith(small)


def requantise(
    plain: Path,
    folder: Path,
    name: str,
    chosen: Callable[[str, torch.Tensor], bool] = is_projection,
    decoded: Path | None = None,
) -> Path:
    """The model in ``plain`` with the ``chosen`` tensors in a form; in ``decoded`` with what they then stand for."""
    form, checkpoint = FORMS[name], open_checkpoint(plain)
    config, tensors, values = checkpoint.config(), {}, {}
    for tensor in checkpoint.names():
        values[tensor] = checkpoint.tensor(tensor)
        if chosen(tensor, values[tensor]):
            parts, values[tensor] = form.write(values[tensor])
            tensors |= {tensor.removesuffix("weight") + end: part for end, part in parts.items()}
        else:
            tensors[tensor] = values[tensor]
    checkpoint.close()
    if decoded is not None:
        write_safetensors(decoded, config, values)
    return write(folder, form, tensors, config)


def with_mxfp4_experts(plain: Path, folder: Path) -> Path:
    """GPT-OSS in ``plain`` with random experts, in its own form."""
    checkpoint, generator = open_checkpoint(plain), torch.Generator().manual_seed(1)
    tensors: Tensors = {}
    for name in checkpoint.names():
        if "experts" in name and name.endswith("_proj"):
            n, k, m = checkpoint.shape(name)
            blocks = torch.randint(0, 256, (n, m, k // 32, 16), dtype=torch.uint8, generator=generator)
            scales = torch.randint(121, 125, (n, m, k // 32), dtype=torch.uint8, generator=generator)
            tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        else:
            tensors[name] = checkpoint.tensor(name)
    config = checkpoint.config() | {"quantization_config": {"quant_method": "mxfp4"}}
    checkpoint.close()
    return write_safetensors(folder, config, tensors)


def write(folder: Path, form: Form, tensors: Tensors, config: dict[str, Any]) -> Path:
    if form.config:
        # As JSON has it: a dtype is a name.
        config = config | {"quantization_config": json.loads(json.dumps(form.config, default=str))}
    write_safetensors(folder, config, tensors)
    for name, content in form.files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


_INT4, _INT8 = {"num_bits": 4, "type": "int"}, {"num_bits": 8, "type": "int"}
_FP8, _FP4 = {"num_bits": 8, "type": "float"}, {"num_bits": 4, "type": "float"}

FORMS = {
    "gptq-4": _gptq(4, 32, sym=True),
    "gptq-4-row": _gptq(4, -1, sym=True),
    "gptq-4-zeros": _gptq(4, 32, sym=False),
    "gptq-4-v2": _gptq(4, 32, sym=False, version=2),
    "gptq-4-desc-act": _gptq(4, 32, sym=False, desc_act=True),
    "gptq-8": _gptq(8, 32, sym=True),
    "gptq-8-zeros-16": _gptq(8, 16, sym=False),
    "awq": _awq(32),
    "awq-16": _awq(16),
    "ct-int4": _compressed("pack-quantized", **_INT4, strategy="group", group_size=32, symmetric=True),
    "ct-int4-zeros": _compressed("pack-quantized", 1e-6, **_INT4, strategy="group", group_size=32, symmetric=False),
    "ct-int4-row": _compressed("pack-quantized", **_INT4, strategy="channel", symmetric=True),
    "ct-int8-packed": _compressed("pack-quantized", **_INT8, strategy="channel", symmetric=True),
    "ct-int8": _compressed("int-quantized", **_INT8, strategy="channel", symmetric=True),
    "ct-int8-tensor-zero": _compressed("int-quantized", 1e-6, **_INT8, strategy="tensor", symmetric=False),
    "ct-fp8": _compressed("float-quantized", **_FP8, strategy="tensor", symmetric=True),
    "ct-fp8-row": _compressed("float-quantized", **_FP8, strategy="channel", symmetric=True),
    "ct-fp8-blocks": _compressed(
        "float-quantized", **_FP8, strategy="block", block_structure=[32, 64], symmetric=True
    ),
    "ct-nvfp4": _compressed(
        "nvfp4-pack-quantized", 3e-7, **_FP4, strategy="tensor_group", group_size=16, symmetric=True,
        scale_dtype=torch.float8_e4m3fn,
    ),
    "ct-mxfp4": _compressed(
        "mxfp4-pack-quantized", **_FP4, strategy="group", group_size=32, symmetric=True,
        scale_dtype=torch.uint8,
    ),
    "fp8-blocks": _fp8_blocks(32, 64),
    "modelopt-fp8": _modelopt("FP8", _modelopt_fp8),
    "modelopt-nvfp4": _modelopt("NVFP4", _modelopt_nvfp4),
}  # fmt: skip
