"""What the configurations of several GGUF architectures have in common."""

from __future__ import annotations

import math
from typing import Any

from .gguf_fields import Fields


def sizes(fields: Fields) -> dict[str, Any]:
    """What every decoder has."""
    hidden = fields.integer("embedding_length")
    vocab, width = _matrix(fields, "token_embd.weight")
    if width != hidden:
        raise fields.error(f"tensor 'token_embd.weight': expected {hidden} columns (embedding_length), found {width}")
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": n_layers(fields),
        "max_position_embeddings": fields.integer("context_length"),
        "tie_word_embeddings": not fields.has_tensor("output.weight"),
    }


def common(fields: Fields, *, partial: bool = False, bias_layer: int = 0) -> dict[str, Any]:
    """Of decoders of the Llama line.

    Args:
        partial: a part of each head may be rotated.
        bias_layer: a layer with attention, whose tensors say whether there are biases.
    """
    config = sizes(fields)
    heads = fields.integer("attention.head_count")
    head_dim = fields.integer(
        "attention.key_length", _default_head_dim(fields, config["hidden_size"] // heads, partial)
    )
    if fields.integer("attention.value_length", head_dim) != head_dim:
        raise fields.error("keys and values of different width are not supported in this architecture")
    rotated = fields.integer("rope.dimension_count", head_dim)
    if head_dim % 2 or rotated % 2 or not (rotated == head_dim or (partial and rotated < head_dim)):
        raise fields.error(
            f"rope.dimension_count {rotated} differs from the head width {head_dim}, or one is odd: not supported"
        )
    config |= {
        "intermediate_size": fields.integer("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "attention_bias": fields.has_tensor(f"blk.{bias_layer}.attn_q.bias"),
    }
    if fields.arch != "nemotron":
        config["rms_norm_eps"] = fields.number("attention.layer_norm_rms_epsilon")
    if partial:
        config["partial_rotary_factor"] = _share(rotated, head_dim)
    return config


def _default_head_dim(fields: Fields, derived: int, partial: bool) -> int:
    """Files without ``attention.key_length``: where whole heads are rotated, the rotation tells their width."""
    derived = max(derived, 1)
    return derived if partial else fields.integer("rope.dimension_count", derived)


def _share(part: int, whole: int) -> float:
    """``part / whole``, so that ``int(whole * share)`` is ``part`` again."""
    share = part / whole
    return share if int(whole * share) == part else math.nextafter(share, 1.0)


def _matrix(fields: Fields, tensor: str) -> tuple[int, int]:
    shape = fields.shape(tensor)
    if len(shape) != 2:
        raise fields.error(f"tensor {tensor!r}: expected 2 dimensions, found shape {list(shape)}")
    return shape[0], shape[1]


def n_layers(fields: Fields) -> int:
    """Without those that predict further tokens."""
    return fields.integer("block_count") - further_layers(fields)


def further_layers(fields: Fields) -> int:
    """How many layers behind the last predict further tokens."""
    found = fields.integer("nextn_predict_layers", 0, at_least=0)
    if found >= fields.integer("block_count"):
        raise fields.error(f"nextn_predict_layers is {found}: as many as there are layers")
    return found


def layers_with(fields: Fields, stem: str) -> list[bool]:
    """Which layers have the tensor."""
    return [fields.has_tensor(f"blk.{layer}.{stem}") for layer in range(n_layers(fields))]


def sliding_layers(fields: Fields, n_layers: int, default: list[bool] | None) -> list[bool]:
    """Which layers slide, one entry a layer. Without a ``default`` the file must say so."""
    sliding = fields.flags("attention.sliding_window_pattern") or default
    if sliding is None:
        raise fields.error("attention.sliding_window is there, but attention.sliding_window_pattern is missing")
    if len(sliding) != n_layers:
        raise fields.error(f"attention.sliding_window_pattern has {len(sliding)} entries for {n_layers} layers")
    return sliding


def layer_types(sliding: list[bool]) -> list[str]:
    return ["sliding_attention" if local else "full_attention" for local in sliding]
