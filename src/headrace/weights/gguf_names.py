"""GGUF tensor names to Hugging Face names. Data only.

Source: ``gguf-py/gguf/tensor_mapping.py`` of llama.cpp (https://github.com/ggml-org/llama.cpp).
"""

from __future__ import annotations

import re

TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}

_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QK_NORM = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_PRE_NORM = {"ffn_norm": "post_attention_layernorm"}
_POST_NORM = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_MIXTRAL = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{expert}.w1",
    "ffn_up_exps": "block_sparse_moe.experts.{expert}.w3",
    "ffn_down_exps": "block_sparse_moe.experts.{expert}.w2",
}
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{expert}.gate_proj",
    "ffn_up_exps": "mlp.experts.{expert}.up_proj",
    "ffn_down_exps": "mlp.experts.{expert}.down_proj",
}
_FUSED = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_LATENT = {
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
}


def _below(names: dict[str, str], old: str, new: str) -> dict[str, str]:
    """The same stems below another module."""
    return {stem: name.replace(old, new, 1) for stem, name in names.items()}


def _shared(module: str) -> dict[str, str]:
    return {f"ffn_{part}_shexp": f"{module}.{part}_proj" for part in ("gate", "up", "down")}


_DEEPSEEK = {**_shared("mlp.shared_experts"), "exp_probs_b.bias": "mlp.gate.e_score_correction_bias"}
_GPT_OSS = {
    "post_attention_norm": "post_attention_layernorm",
    "attn_sinks.weight": "self_attn.sinks",
    "ffn_gate_inp": "mlp.router",
    "ffn_down_exps.bias": "mlp.experts.down_proj_bias",
}
_LLAMA4 = {"ffn_gate_inp": "feed_forward.router", **_shared("feed_forward.shared_expert")}
_QWEN_NEXT = {
    "post_attention_norm": "post_attention_layernorm",
    "ssm_in": "linear_attn.in_proj_qkvz",
    "ssm_ba": "linear_attn.in_proj_ba",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_dt.bias": "linear_attn.dt_bias",
    "ssm_a": "linear_attn.A_log",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    **_shared("mlp.shared_expert"),
}
_NEMOTRON_H = {
    "attn_norm": "norm",
    "attn_q": "mixer.q_proj",
    "attn_k": "mixer.k_proj",
    "attn_v": "mixer.v_proj",
    "attn_output": "mixer.o_proj",
    "ffn_up": "mixer.up_proj",
    "ffn_down": "mixer.down_proj",
    "ssm_in": "mixer.in_proj",
    "ssm_conv1d": "mixer.conv1d",
    "ssm_dt.bias": "mixer.dt_bias",
    "ssm_a": "mixer.A_log",
    "ssm_d": "mixer.D",
    "ssm_norm": "mixer.norm",
    "ssm_out": "mixer.out_proj",
    "ffn_gate_inp": "mixer.gate",
    "exp_probs_b.bias": "mixer.gate.e_score_correction_bias",
    "ffn_up_exps": "mixer.experts.{expert}.up_proj",
    "ffn_down_exps": "mixer.experts.{expert}.down_proj",
    "ffn_up_shexp": "mixer.shared_experts.up_proj",
    "ffn_down_shexp": "mixer.shared_experts.down_proj",
    "ffn_latent_down": "mixer.fc1_latent_proj",
    "ffn_latent_up": "mixer.fc2_latent_proj",
}


def _without(names: dict[str, str], *absent: str) -> dict[str, str]:
    return {stem: name for stem, name in names.items() if stem not in absent}


LAYER_NAMES = {
    "llama": _LAYER | _PRE_NORM | _MIXTRAL,
    "qwen2": _LAYER | _PRE_NORM,
    "qwen3": _LAYER | _PRE_NORM | _QK_NORM,
    "qwen3moe": _LAYER | _PRE_NORM | _QK_NORM | _EXPERTS,
    "gemma3": _LAYER | _POST_NORM | {"ffn_norm": "pre_feedforward_layernorm"} | _QK_NORM,
    "phi3": _without(_LAYER, "attn_q", "attn_k", "attn_v", "ffn_gate") | _PRE_NORM | _FUSED,
    "nemotron": _without(_LAYER, "ffn_gate") | _PRE_NORM,
    "exaone4": _without(_LAYER, "attn_norm") | _POST_NORM | _QK_NORM,
    "deepseek2": _without(_LAYER, "attn_k", "attn_v") | _PRE_NORM | _LATENT | _EXPERTS | _DEEPSEEK,
    "gpt-oss": _without(_LAYER, "ffn_gate", "ffn_up", "ffn_down") | _GPT_OSS,
    "llama4": _below(_LAYER, "mlp", "feed_forward") | _PRE_NORM | _LLAMA4,
    "qwen3next": _LAYER | _QK_NORM | _EXPERTS | _QWEN_NEXT,
    "nemotron_h": _NEMOTRON_H,
    "nemotron_h_moe": _NEMOTRON_H,
}
"""Stem -> module, or stem and kind -> the whole name where the hub has it otherwise. ``{expert}``: a tensor holds the
matrices of all experts of a layer."""

_BACKBONE = {"token_embd": "backbone.embeddings", "output_norm": "backbone.norm_f", "output": "lm_head"}
TOP_NAMES = {"nemotron_h": _BACKBONE, "nemotron_h_moe": _BACKBONE}
"""Where they are not ``TOP``."""


_TABLES = re.compile(r"(rope_freqs|rope_factors_long|rope_factors_short|blk\.\d+\.attn_rot_embd)\.weight")
"""Tables computed from the configuration, not weights."""


def is_weight(gguf_name: str) -> bool:
    """False for rope tables, which the configuration covers."""
    return not _TABLES.fullmatch(gguf_name)
