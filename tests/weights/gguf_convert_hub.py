"""A folder of the hub as a GGUF file, for architectures whose tensors the conversion takes apart or puts together.

What ``conversion/`` (deepseek, gpt_oss, llama4, qwen, nemotron) of llama.cpp does, for tiny models. Tensor names come
from the tables of the ``gguf`` package.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, get_tensor_name_map
from gguf.quants import quantize

from headrace.eval.tiny import make, save
from headrace.weights.checkpoint import Checkpoint, open_checkpoint
from weights.gguf_convert import llama3_table
from weights.gguf_files import add_field

Tensors = Iterator[tuple[str, torch.Tensor]]
"""Names as the converter gives them to the name table, or those of the file."""


def tiny_folder(tmp_path: Path, variant: str, **changes: Any) -> Path:
    """A folder whose numbers survive the conversion: w + 1 - 1 is w, and log(exp(A)) is A."""
    model = make(variant, **changes)
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", "norm_f.weight")):
            parameter.copy_((parameter * 4096).round() / 4096)
        if name.endswith("A_log"):
            for _ in range(9):
                parameter.copy_(parameter.exp().log())
            assert torch.equal(parameter, parameter.exp().log())
    return save(model, tmp_path / "hub")


def convert_hub(
    folder: Path,
    arch: MODEL_ARCH,
    path: Path,
    changes: dict[str, Any] | None = None,
    experts: GGMLQuantizationType | None = None,
) -> Path:
    """Write the folder's tensors in float32, ``experts`` in blocks of that type. ``changes`` replaces metadata."""
    checkpoint = open_checkpoint(folder)
    config, name = checkpoint.config(), MODEL_ARCH_NAMES[arch]
    writer = GGUFWriter(path, name)
    for key, value in {**_fields(config), **_OWN_FIELDS[arch](config), **(changes or {})}.items():
        if value is not None:
            add_field(writer, f"{name}.{key}", value)
    names = get_tensor_name_map(arch, len(config.get("layers_block_type") or ()) or config["num_hidden_layers"])
    for hub_name, tensor in _TENSORS[arch](checkpoint, config):
        gguf_name = hub_name if hub_name.startswith("blk.") else names.get_name(hub_name, (".weight", ".bias"))
        assert gguf_name is not None, hub_name
        stored = tensor.float().contiguous().numpy()
        if experts is not None and gguf_name.endswith("_exps.weight"):
            writer.add_tensor(gguf_name, quantize(stored, experts), raw_dtype=experts)
        else:
            writer.add_tensor(gguf_name, stored)
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_table(rope, config["head_dim"]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint.close()
    return path


def _fields(config: dict[str, Any]) -> dict[str, Any]:
    rope = config.get("rope_parameters") or {}
    fields = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config.get("num_hidden_layers"),
        "feed_forward_length": config.get("intermediate_size"),
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": config.get("rms_norm_eps"),
        "attention.key_length": config.get("head_dim"),
        "attention.value_length": config.get("head_dim"),
        "rope.freq_base": rope.get("rope_theta"),
        "expert_count": config.get("num_local_experts") or config.get("num_experts") or config.get("n_routed_experts"),
        "expert_used_count": config.get("num_experts_per_tok"),
        "expert_feed_forward_length": config.get("moe_intermediate_size"),
        "expert_group_count": config.get("n_group"),
        "expert_group_used_count": config.get("topk_group"),
    }
    if rope.get("rope_type") == "yarn":
        fields |= {"rope.scaling.type": "yarn", "rope.scaling.factor": rope["factor"]}
    if rope.get("rope_type") in ("yarn", "llama3"):
        fields["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    return fields


def _deepseek_fields(config: dict[str, Any]) -> dict[str, Any]:
    rank, rope_dim = config["kv_lora_rank"], config["qk_rope_head_dim"]
    gain = config["rope_parameters"].get("mscale_all_dim")
    return {
        "attention.head_count_kv": 1,
        "leading_dense_block_count": config["first_k_dense_replace"],
        "attention.q_lora_rank": config["q_lora_rank"],
        "attention.kv_lora_rank": rank,
        "attention.key_length": rank + rope_dim,
        "attention.value_length": rank,
        "attention.key_length_mla": config["qk_nope_head_dim"] + rope_dim,
        "attention.value_length_mla": config["v_head_dim"],
        "expert_shared_count": config["n_shared_experts"],
        "expert_weights_scale": config["routed_scaling_factor"],
        "expert_weights_norm": config["norm_topk_prob"] or None,
        "expert_gating_func": 2,
        "rope.dimension_count": rope_dim,
        "rope.scaling.yarn_log_multiplier": 0.1 * gain if gain else None,
    }


def _gpt_oss_fields(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "attention.sliding_window": config["sliding_window"],
        "expert_feed_forward_length": config["intermediate_size"],
    }


def _llama4_fields(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "feed_forward_length": config["intermediate_size_mlp"],
        "expert_feed_forward_length": config["intermediate_size"],
        "interleave_moe_layer_step": config["interleave_moe_layer_step"],
        "rope.dimension_count": config["head_dim"],
    }


def _qwen_next_fields(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "ssm.conv_kernel": config["linear_conv_kernel_dim"],
        "ssm.state_size": config["linear_key_head_dim"],
        "ssm.group_count": config["linear_num_key_heads"],
        "ssm.time_step_rank": config["linear_num_value_heads"],
        "ssm.inner_size": config["linear_value_head_dim"] * config["linear_num_value_heads"],
        "full_attention_interval": 4,
        "rope.dimension_count": int(config["head_dim"] * config["rope_parameters"]["partial_rotary_factor"]),
        "expert_shared_feed_forward_length": config["shared_expert_intermediate_size"],
    }


def _nemotron_fields(config: dict[str, Any]) -> dict[str, Any]:
    kinds = config["layers_block_type"]
    has_experts = "moe" in kinds
    inner = config["moe_intermediate_size" if has_experts else "intermediate_size"]
    fields = {
        "block_count": len(kinds),
        "context_length": 1 << 20,
        "feed_forward_length": [inner * (kind in ("mlp", "moe")) for kind in kinds],
        "attention.head_count_kv": [config["num_key_value_heads"] * (kind == "full_attention") for kind in kinds],
        "attention.layer_norm_rms_epsilon": config["layer_norm_epsilon"],
        "ssm.conv_kernel": config["conv_kernel"],
        "ssm.state_size": config["ssm_state_size"],
        "ssm.group_count": config["n_groups"],
        "ssm.time_step_rank": config["mamba_num_heads"],
        "ssm.inner_size": config["mamba_num_heads"] * config["mamba_head_dim"],
        "rope.scaling.finetuned": False,
    }
    experts = {
        "expert_shared_feed_forward_length": config["moe_shared_expert_intermediate_size"],
        "expert_shared_count": 1,
        "expert_weights_norm": config["norm_topk_prob"],
        "expert_weights_scale": float(config["routed_scaling_factor"]),
        "moe_latent_size": config.get("moe_latent_size"),
    }
    no_experts = dict.fromkeys(
        (
            "expert_count",
            "expert_used_count",
            "expert_feed_forward_length",
            "expert_group_count",
            "expert_group_used_count",
        )
    )
    return fields | (experts if has_experts else no_experts)


def _each(checkpoint: Checkpoint) -> Tensors:
    """All tensors; the matrices of experts that are apart, together."""
    together: dict[str, dict[int, torch.Tensor]] = {}
    for name in checkpoint.names():
        head, mark, tail = name.partition(".experts.")
        number, _, part = tail.partition(".")
        if mark and number.isdigit():
            together.setdefault(f"{head}.experts.{part}", {})[int(number)] = checkpoint.tensor(name)
        else:
            yield name, checkpoint.tensor(name)
    for name, experts in together.items():
        yield name, torch.stack([experts[i] for i in range(len(experts))])


def _deepseek(checkpoint: Checkpoint, config: dict[str, Any]) -> Tensors:
    n_heads, n_keys = config["num_attention_heads"], config["qk_nope_head_dim"]
    for name, tensor in _each(checkpoint):
        if name.endswith("kv_b_proj.weight"):
            keys, values = tensor.unflatten(0, (n_heads, -1)).split([n_keys, config["v_head_dim"]], dim=1)
            yield name.replace("kv_b", "k_b"), keys.transpose(1, 2)
            yield name.replace("kv_b", "v_b"), values
        else:
            yield name.replace("correction_bias", "correction.bias"), tensor


def _gpt_oss(checkpoint: Checkpoint, config: dict[str, Any]) -> Tensors:
    for name, tensor in _each(checkpoint):
        if name.endswith("gate_up_proj"):
            yield name.replace("gate_up_proj", "gate_proj.weight"), tensor.transpose(1, 2)[:, ::2]
            yield name.replace("gate_up_proj", "up_proj.weight"), tensor.transpose(1, 2)[:, 1::2]
        elif name.endswith("gate_up_proj_bias"):
            yield name.replace("gate_up_proj_bias", "gate_proj.bias"), tensor[:, ::2]
            yield name.replace("gate_up_proj_bias", "up_proj.bias"), tensor[:, 1::2]
        elif name.endswith("down_proj"):
            yield f"{name}.weight", tensor.transpose(1, 2)
        else:
            yield name.replace("down_proj_bias", "down_proj.bias").replace("sinks", "sinks.weight"), tensor


def _llama4(checkpoint: Checkpoint, config: dict[str, Any]) -> Tensors:
    for name, tensor in _each(checkpoint):
        if name.endswith("gate_up_proj"):
            gate, up = tensor.transpose(1, 2).chunk(2, dim=1)
            yield name.replace("gate_up_proj", "gate_proj.weight"), gate
            yield name.replace("gate_up_proj", "up_proj.weight"), up
        else:
            is_down = name.endswith("experts.down_proj")
            yield (f"{name}.weight", tensor.transpose(1, 2)) if is_down else (name, tensor)


def _qwen_next(checkpoint: Checkpoint, config: dict[str, Any]) -> Tensors:
    heads, key_rows = config["linear_num_key_heads"], config["linear_key_head_dim"]
    value_rows = config["linear_num_value_heads"] // heads * config["linear_value_head_dim"]
    for name, tensor in _each(checkpoint):
        layer = name.split(".")[2] if ".layers." in name else ""
        if name.endswith("in_proj_qkvz.weight"):
            kinds = tensor.unflatten(0, (heads, -1)).split([key_rows, key_rows, value_rows, value_rows], dim=1)
            q, k, v, z = (kind.flatten(0, 1) for kind in kinds)
            yield f"blk.{layer}.attn_qkv.weight", torch.cat([q, k, v])
            yield f"blk.{layer}.attn_gate.weight", z
        elif name.endswith("A_log"):
            yield name, -torch.exp(tensor)
        elif name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
            yield name, tensor + 1
        else:
            yield name.replace("dt_bias", "dt_proj.bias"), tensor.squeeze() if "conv1d" in name else tensor


def _nemotron(checkpoint: Checkpoint, config: dict[str, Any]) -> Tensors:
    for name, tensor in _each(checkpoint):
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            half = config["head_dim"] // 2
            yield name, tensor.reshape(-1, 2, half, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        elif name.endswith("A_log"):
            yield name, -torch.exp(tensor).reshape(-1, 1)
        elif name.endswith("mixer.D"):
            yield name, tensor.reshape(-1, 1)
        elif name.endswith("mixer.norm.weight"):
            yield name, tensor.reshape(config["n_groups"], -1)
        elif ".experts." in name:
            yield name.replace("backbone", "model").replace("mixer", "mlp"), tensor
        else:
            name = name.replace("dt_bias", "dt.bias").replace("correction_bias", "correction.bias")
            yield name, tensor.squeeze() if name.endswith("conv1d.weight") else tensor


_OWN_FIELDS = {
    MODEL_ARCH.DEEPSEEK2: _deepseek_fields,
    MODEL_ARCH.GPT_OSS: _gpt_oss_fields,
    MODEL_ARCH.LLAMA4: _llama4_fields,
    MODEL_ARCH.QWEN3NEXT: _qwen_next_fields,
    MODEL_ARCH.NEMOTRON_H: _nemotron_fields,
    MODEL_ARCH.NEMOTRON_H_MOE: _nemotron_fields,
}
_TENSORS = {
    MODEL_ARCH.DEEPSEEK2: _deepseek,
    MODEL_ARCH.GPT_OSS: _gpt_oss,
    MODEL_ARCH.LLAMA4: _llama4,
    MODEL_ARCH.QWEN3NEXT: _qwen_next,
    MODEL_ARCH.NEMOTRON_H: _nemotron,
    MODEL_ARCH.NEMOTRON_H_MOE: _nemotron,
}
