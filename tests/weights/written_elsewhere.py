"""Quantised folders as their own packages write them, and whether headrace reads in them what those packages do.

    PYTHON-OF-THE-PACKAGE tests/weights/written_elsewhere.py write WHAT FOLDER
    python tests/weights/written_elsewhere.py check FOLDER ...

``write`` makes a tiny random Llama, has a package quantise and save it, and keeps beside it what the package itself
says that its weights stand for (``expected.safetensors``): it runs where that package is installed, and needs no
headrace. ``check`` compares: every weight as headrace unpacks it with the package's; then logits, of the same values in
transformers, and of headrace with weights unpacked and with weights kept in their few bits.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

EXPECTED, NOTE = "expected.safetensors", "written_by.json"
PROMPT = [(7 * i) % 290 + 3 for i in range(100)]
Weights = dict[str, torch.Tensor]
"""Name -> what it stands for, float32; only of what is quantised."""


def tiny_llama() -> Any:
    """Sizes that every group size used here goes into; a block of 128 rows is cut short."""
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=320, hidden_size=256, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=256, tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval().to(torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                sharper = 3.0 if "q_proj" in name or "k_proj" in name else 1.0
                parameter.copy_(torch.randn_like(parameter) * sharper * parameter.shape[1] ** -0.5)
                # Rows that are all above zero: their zeros are at the end of the range.
                parameter[::17] = parameter[::17].abs()
    return model


def tokenizer_into(folder: Path) -> None:
    """One token a byte: packages ask for a tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {name: index for index, name in enumerate(["<pad>", "<s>", "</s>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


def finish(folder: Path, package: str, what: str, weights: Weights) -> None:
    """Writes what to expect: the weights, and the logits that transformers makes of them in float32."""
    model = tiny_llama().float()
    state = model.state_dict()
    for name, values in weights.items():
        state[name].copy_(values)
    with torch.no_grad():
        logits = model(torch.tensor([PROMPT])).logits[0]
    kept = {name: values.float().contiguous() for name, values in weights.items()}
    save_file({**kept, "logits": logits}, folder / EXPECTED)
    (folder / NOTE).write_text(json.dumps({"package": package, "version": version(package), "what": what}))


def _source(folder: Path) -> Path:
    """The model in floats, for packages that read it from files."""
    source = folder.with_name(folder.name + "-source")
    source.mkdir(parents=True, exist_ok=True)
    tiny_llama().save_pretrained(source)
    tokenizer_into(source)
    return source


def _text() -> list[str]:
    return [" ".join(f"word {i * j % 97} of {j}" for j in range(60)) for i in range(1, 17)]


def gptqmodel(folder: Path, **config: Any) -> Weights:
    """GPTQModel, both methods."""
    # On two CPUs its pools of threads do not fit together.
    os.cpu_count = lambda: 8
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    model = GPTQModel.load(str(_source(folder)), QuantizeConfig(device="cpu", **config))
    model.quantize(_text(), batch_size=1)
    model.save(str(folder))
    backend = BACKEND.TORCH_AWQ if config.get("quant_method") == "awq" else BACKEND.TORCH
    read = GPTQModel.load(str(folder), backend=backend, device="cpu")
    weights: Weights = {}
    for name, module in read.model.named_modules():
        if hasattr(module, "qweight"):
            values = module.dequantize_weight() if hasattr(module, "dequantize_weight") else _awq_values(module)
            weights[f"{name}.weight"] = values.float().T.contiguous()
    return weights


def _awq_values(module: Any) -> torch.Tensor:
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    return dequantize_gemm(module.qweight, module.qzeros, module.scales, module.bits, module.group_size)


def llmcompressor(folder: Path, scheme: str, modifier: str = "QuantizationModifier", **options: Any) -> Weights:
    """LLM Compressor, through compressed-tensors."""
    from llmcompressor import oneshot
    from llmcompressor.modifiers import quantization
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import CompressedTensorsConfig

    source = _source(folder)
    tokenizer = AutoTokenizer.from_pretrained(source)
    data = None
    if scheme in ("W8A8", "NVFP4", "FP8") or modifier != "QuantizationModifier":
        from datasets import Dataset

        data = Dataset.from_dict({"text": _text()}).map(lambda row: tokenizer(row["text"], max_length=128))
        data = data.remove_columns("text")
    recipe = getattr(quantization, modifier)(targets="Linear", scheme=scheme, ignore=["lm_head"], **options)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    calibration = {} if data is None else {"dataset": data, "num_calibration_samples": 8, "max_seq_length": 128}
    oneshot(model=model, recipe=recipe, **calibration)
    model.save_pretrained(folder, save_compressed=True)
    tokenizer.save_pretrained(folder)
    read = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=CompressedTensorsConfig(run_compressed=False)
    )
    return {
        f"{name}.weight": module.weight.data.float()
        for name, module in read.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }


def modelopt(folder: Path, config: str) -> Weights:
    """NVIDIA's Model Optimizer."""
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint
    from modelopt.torch.export.unified_export_hf import requantize_resmooth_fused_llm_layers

    # In bfloat16 its export rounds twice, and a number in thirty is not what its own quantiser says.
    model = tiny_llama().float()
    batch = torch.tensor([PROMPT])
    model = mtq.quantize(model, getattr(mtq, config), lambda m: m(batch))
    # What the export begins with: maps that are multiplied together get one scale.
    requantize_resmooth_fused_llm_layers(model)
    weights = {}
    for name, module in model.named_modules():
        quantizer = getattr(module, "weight_quantizer", None)
        if quantizer is not None and quantizer.is_enabled and getattr(module, "weight", None) is not None:
            weights[f"{name}.weight"] = quantizer(module.weight.data.float()).detach()
    export_hf_checkpoint(model, export_dir=str(folder))
    tokenizer_into(folder)
    return weights


def autoawq(folder: Path, group: int) -> Weights:
    """AutoAWQ's own layer for its version gemm: the package has its search for scales behind a GPU."""
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    model, tensors, weights = tiny_llama().half(), {}, {}
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or name == "lm_head":
            continue
        parts = module.weight.data.unflatten(1, (-1, group)).float()
        low, high = parts.amin(2).clamp(max=0), parts.amax(2).clamp(min=0)
        scales = ((high - low) / 15).clamp(min=1e-5)
        zeros = (-low / scales).round().clamp(0, 15)
        packed = WQLinear_GEMM.from_linear(module, 4, group, False, scales.half().T.contiguous(), zeros.T.contiguous())
        tensors |= {f"{name}.{part}": getattr(packed, part) for part in ("qweight", "qzeros", "scales")}
        values = dequantize_gemm(packed.qweight, packed.qzeros, packed.scales, 4, group)
        weights[f"{name}.weight"] = values.T.float().contiguous()
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    _save(folder, model, tensors, weights, config)
    return weights


def autogptq(folder: Path, bits: int, group: int, sym: bool) -> Weights:
    """AutoGPTQ's own layer and its reading of it: version 1 as it was."""
    from auto_gptq.nn_modules.qlinear.qlinear_cuda_old import QuantLinear

    model, tensors, weights = tiny_llama().half(), {}, {}
    top = (1 << bits) - 1
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or name == "lm_head":
            continue
        parts = module.weight.data.float().unflatten(1, (-1, group))
        size = parts.abs().amax(2)
        low, high = (-size, size) if sym else (parts.amin(2).clamp(max=0), parts.amax(2).clamp(min=0))
        scales = ((high - low) / top).clamp(min=1e-5)
        # A zero of 0 cannot be written in this version.
        zeros = torch.full_like(scales, (top + 1) / 2) if sym else (-low / scales).round().clamp(1, top)
        index = torch.arange(module.in_features, dtype=torch.int32) // group
        layer = QuantLinear(bits, group, module.in_features, module.out_features, False, use_cuda_fp16=False)
        layer.pack(module, scales, zeros, index)
        tensors |= {f"{name}.{part}": getattr(layer, part) for part in ("qweight", "qzeros", "scales")}
        tensors[f"{name}.g_idx"] = index
        # What it multiplies: all rows of the identity.
        weights[f"{name}.weight"] = layer.float()(torch.eye(module.in_features)).T.float().contiguous()
    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": sym, "desc_act": False}
    _save(folder, model, tensors, weights, config)
    return weights


def _save(folder: Path, model: Any, tensors: Weights, replaced: Weights, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    left = {name: tensor for name, tensor in model.state_dict().items() if name not in replaced}
    save_file({name: tensor.contiguous() for name, tensor in {**left, **tensors}.items()}, folder / "model.safetensors")
    fields = json.loads(model.config.to_json_string()) | {"quantization_config": config}
    (folder / "config.json").write_text(json.dumps(fields))
    tokenizer_into(folder)


_GPTQ = {"bits": 4, "group_size": 64}
WRITERS: dict[str, tuple[str, Callable[..., Weights], dict[str, Any]]] = {
    "gptqmodel-4": ("gptqmodel", gptqmodel, {**_GPTQ, "sym": True, "desc_act": False}),
    "gptqmodel-4-zeros": ("gptqmodel", gptqmodel, {**_GPTQ, "sym": False, "desc_act": False}),
    "gptqmodel-4-v2": ("gptqmodel", gptqmodel, {**_GPTQ, "sym": False, "desc_act": False, "format": "gptq_v2"}),
    "gptqmodel-4-desc-act": ("gptqmodel", gptqmodel, {**_GPTQ, "sym": True, "desc_act": True}),
    "gptqmodel-4-row": ("gptqmodel", gptqmodel, {"bits": 4, "group_size": -1, "sym": True, "desc_act": False}),
    "gptqmodel-8": ("gptqmodel", gptqmodel, {"bits": 8, "group_size": 64, "sym": True, "desc_act": False}),
    "gptqmodel-3": ("gptqmodel", gptqmodel, {"bits": 3, "group_size": 64, "sym": True, "desc_act": False}),
    "gptqmodel-2": ("gptqmodel", gptqmodel, {"bits": 2, "group_size": 64, "sym": False, "desc_act": False}),
    "gptqmodel-awq": ("gptqmodel", gptqmodel, {**_GPTQ, "quant_method": "awq", "format": "gemm"}),
    "llmcompressor-w4a16": ("llmcompressor", llmcompressor, {"scheme": "W4A16"}),
    "llmcompressor-w4a16-zeros": ("llmcompressor", llmcompressor, {"scheme": "W4A16_ASYM"}),
    "llmcompressor-w4a16-order": (
        "llmcompressor", llmcompressor, {"scheme": "W4A16", "modifier": "GPTQModifier", "actorder": "group"}
    ),
    "llmcompressor-w8a16": ("llmcompressor", llmcompressor, {"scheme": "W8A16"}),
    "llmcompressor-w8a8": ("llmcompressor", llmcompressor, {"scheme": "W8A8"}),
    "llmcompressor-fp8": ("llmcompressor", llmcompressor, {"scheme": "FP8"}),
    "llmcompressor-fp8-rows": ("llmcompressor", llmcompressor, {"scheme": "FP8_DYNAMIC"}),
    "llmcompressor-fp8-blocks": ("llmcompressor", llmcompressor, {"scheme": "FP8_BLOCK"}),
    "llmcompressor-nvfp4": ("llmcompressor", llmcompressor, {"scheme": "NVFP4"}),
    "llmcompressor-nvfp4a16": ("llmcompressor", llmcompressor, {"scheme": "NVFP4A16"}),
    "llmcompressor-mxfp4": ("llmcompressor", llmcompressor, {"scheme": "MXFP4"}),
    "modelopt-fp8": ("nvidia-modelopt", modelopt, {"config": "FP8_DEFAULT_CFG"}),
    "modelopt-fp8-rows": ("nvidia-modelopt", modelopt, {"config": "FP8_PER_CHANNEL_PER_TOKEN_CFG"}),
    "modelopt-nvfp4": ("nvidia-modelopt", modelopt, {"config": "NVFP4_DEFAULT_CFG"}),
    "modelopt-nvfp4-awq": ("nvidia-modelopt", modelopt, {"config": "NVFP4_AWQ_LITE_CFG"}),
    "autoawq": ("autoawq", autoawq, {"group": 64}),
    "autogptq-4": ("auto-gptq", autogptq, {"bits": 4, "group": 64, "sym": True}),
    "autogptq-4-zeros": ("auto-gptq", autogptq, {"bits": 4, "group": 64, "sym": False}),
    "autogptq-8-zeros": ("auto-gptq", autogptq, {"bits": 8, "group": 64, "sym": False}),
}  # fmt: skip
"""What to write -> package, writer, and its arguments."""


def check(folder: Path) -> str:
    """One line: how far what headrace reads is from what the package says."""
    from headrace.eval.text_model import MODES, TextModel
    from headrace.weights.checkpoint import open_checkpoint

    expected, note = load_file(folder / EXPECTED), json.loads((folder / NOTE).read_text())
    wanted = expected.pop("logits").log_softmax(-1)
    checkpoint = open_checkpoint(folder)
    worst = max(
        float((checkpoint.tensor(name).float() - values).abs().max() / values.abs().max())
        for name, values in expected.items()
    )
    kept = sum(checkpoint.block_format(name) is not None for name in expected)
    checkpoint.close()
    far = []
    for mode in ("float32", "stored"):
        found = torch.cat(list(TextModel(folder, MODES[mode], len(PROMPT)).logprobs(PROMPT)))
        far.append(float((found - wanted).abs().mean()))
    return (
        f"{note['what']:28s} {note['package']} {note['version']}: {len(expected)} weights, {kept} kept;"
        f" values differ by {worst:.1e} of the largest; logprobs by {far[0]:.1e} unpacked, {far[1]:.1e} kept"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("write")
    writing.add_argument("what", choices=tuple(WRITERS))
    writing.add_argument("folder", type=Path)
    checking = commands.add_parser("check")
    checking.add_argument("folders", type=Path, nargs="+")
    args = parser.parse_args()
    if args.command == "check":
        for folder in args.folders:
            print(check(folder), flush=True)
        return
    if args.folder.exists():
        sys.exit(f"{args.folder} is there already")
    package, writer, options = WRITERS[args.what]
    finish(args.folder, package, args.what, writer(args.folder, **options))


if __name__ == "__main__":
    main()
