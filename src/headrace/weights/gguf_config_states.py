"""GGUF metadata of models with recurrent layers to the fields of their ``config.json``.

Sources: ``conversion/`` (qwen, nemotron, granite, mamba) and ``src/models/`` of llama.cpp
(https://github.com/ggml-org/llama.cpp). What a layer is, its tensors tell.
"""

from __future__ import annotations

from typing import Any

from .gguf_config_parts import common, layers_with, sizes
from .gguf_fields import Fields


def qwen3_next(fields: Fields) -> dict[str, Any]:
    linear, sparse = layers_with(fields, "ssm_a"), layers_with(fields, "ffn_gate_inp.weight")
    if all(linear) or not any(sparse):
        raise fields.error("architecture 'qwen3next' without attention, or without experts: not supported")
    value_heads, inner = fields.integer("ssm.time_step_rank"), fields.integer("ssm.inner_size")
    if inner % value_heads:
        raise fields.error(f"ssm.inner_size {inner} is not a multiple of ssm.time_step_rank {value_heads}")
    return common(fields, partial=True, bias_layer=linear.index(False)) | {
        "architectures": ["Qwen3NextForCausalLM"],
        "model_type": "qwen3_next",
        "hidden_act": "silu",
        "layer_types": ["linear_attention" if is_linear else "full_attention" for is_linear in linear],
        "linear_conv_kernel_dim": fields.integer("ssm.conv_kernel"),
        "linear_key_head_dim": fields.integer("ssm.state_size"),
        "linear_num_key_heads": fields.integer("ssm.group_count"),
        "linear_num_value_heads": value_heads,
        "linear_value_head_dim": inner // value_heads,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [layer for layer, is_sparse in enumerate(sparse) if not is_sparse],
        "num_experts": fields.integer("expert_count"),
        "num_experts_per_tok": fields.integer("expert_used_count"),
        "moe_intermediate_size": fields.integer("expert_feed_forward_length"),
        "shared_expert_intermediate_size": fields.shape(f"blk.{sparse.index(True)}.ffn_up_shexp.weight")[0],
        "norm_topk_prob": True,
        "rope_theta": fields.number("rope.freq_base"),
    }


def nemotron_h(fields: Fields) -> dict[str, Any]:
    """Attention knows no positions; sizes that only some layers have are 0 in the others."""
    heads, states = fields.integer("attention.head_count"), fields.integer("ssm.time_step_rank")
    inner, kinds = fields.integer("ssm.inner_size"), _mixers(fields)
    if inner % states:
        raise fields.error(f"ssm.inner_size {inner} is not a multiple of ssm.time_step_rank {states}")
    config = sizes(fields) | {
        "architectures": ["NemotronHForCausalLM"],
        "model_type": "nemotron_h",
        "layers_block_type": kinds,
        "mlp_hidden_act": "relu2",
        "mamba_hidden_act": "silu",
        "intermediate_size": fields.integer("feed_forward_length", fields.integer("embedding_length"), some=True),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.integer("attention.head_count_kv", heads, some=True),
        "head_dim": fields.integer("attention.key_length"),
        "layer_norm_epsilon": fields.number("attention.layer_norm_rms_epsilon"),
        "mamba_num_heads": states,
        "mamba_head_dim": inner // states,
        "n_groups": fields.integer("ssm.group_count"),
        "ssm_state_size": fields.integer("ssm.state_size"),
        "conv_kernel": fields.integer("ssm.conv_kernel"),
        "use_conv_bias": any(layers_with(fields, "ssm_conv1d.bias")),
        "use_bias": any(layers_with(fields, "ssm_in.bias")),
        "attention_bias": any(layers_with(fields, "attn_q.bias")),
        "mlp_bias": any(layers_with(fields, "ffn_up.bias")) or any(layers_with(fields, "ffn_up_shexp.bias")),
    }
    return config | _mixture(fields) if "moe" in kinds else config


def _mixers(fields: Fields) -> list[str]:
    stems = {"ssm_in": "mamba", "attn_q": "attention", "ffn_gate_inp": "moe", "ffn_up": "mlp"}
    has = {kind: layers_with(fields, f"{stem}.weight") for stem, kind in stems.items()}
    kinds = [next((kind for kind in has if has[kind][i]), None) for i in range(len(has["mlp"]))]
    if None in kinds:
        raise fields.error(f"layer {kinds.index(None)} has no tensor of any mixer ({', '.join(stems)})")
    return [kind for kind in kinds if kind is not None]


def _mixture(fields: Fields) -> dict[str, Any]:
    return {
        "n_routed_experts": fields.integer("expert_count"),
        "num_experts_per_tok": fields.integer("expert_used_count"),
        "n_group": fields.integer("expert_group_count", 1),
        "topk_group": fields.integer("expert_group_used_count", 1),
        "routed_scaling_factor": fields.number("expert_weights_scale", 1.0),
        "norm_topk_prob": fields.flag("expert_weights_norm", True),
        "moe_intermediate_size": fields.integer("expert_feed_forward_length"),
        "moe_shared_expert_intermediate_size": fields.integer("expert_shared_feed_forward_length"),
        "moe_latent_size": fields.optional_integer("moe_latent_size"),
    }
