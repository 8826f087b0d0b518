"""DeciLM in plain torch: transformers does not have it. Llama whose layers say what is left of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from headrace.core.errors import ModelError
from headrace.weights.checkpoint import Checkpoint
from headrace.weights.dummy import write_safetensors

_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 32}  # fmt: skip


def attention(**choice: Any) -> dict[str, Any]:
    """An entry as released files have it."""
    unset = {"sparsify": None, "window_length": None, "num_sink_tokens": None, "unshifted_sink": False}
    return {"n_heads_in_group": None, "no_op": False, "replace_with_linear": False, **unset, **choice}


def ffn(**choice: Any) -> dict[str, Any]:
    return {"ffn_mult": None, "no_op": False, "replace_with_linear": False, "sparsify": None, **choice}


MIXED = [
    {"attention": attention(n_heads_in_group=2), "ffn": ffn(ffn_mult=1.5)},
    {"attention": attention(no_op=True), "ffn": ffn(ffn_mult=6.5)},
    {"attention": attention(replace_with_linear=True), "ffn": ffn(replace_with_linear=True)},
    {"attention": attention(n_heads_in_group=4), "ffn": ffn(no_op=True)},
    {"attention": attention(no_op=True), "ffn": ffn(no_op=True)},
    {"attention": attention(n_heads_in_group=1), "ffn": ffn(intermediate_size=40)},
    {"attention": attention(n_heads_in_group=2), "ffn": ffn(replace_with_linear=True)},
]
"""Every choice, alone and in company, with 1, 2 and 4 KV heads."""


class DeciLM(torch.nn.Module):
    """Takes [1, T] tokens, gives an object with ``logits`` [1, T, vocab_size]."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        settings = {"block_configs": MIXED, "rope_scaling": _ROPE, "rope_theta": 10000.0, **settings}
        settings |= {"num_hidden_layers": len(settings["block_configs"])}
        settings |= {"num_key_value_heads": None, "intermediate_size": None, "model_type": "nemotron-nas"}
        self.config = SimpleNamespace(**{**settings, "architectures": ["DeciLMForCausalLM"]})
        self._tensors = {name: torch.zeros(shape) for name, shape in self._shapes()}

    @classmethod
    def read(cls, checkpoint: Checkpoint) -> DeciLM:
        """The model of a checkpoint. Raises ModelError for what is written here for released models only."""
        config = checkpoint.config()
        config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
        config.setdefault("rms_norm_eps", 1e-6)
        rope = config.get("rope_scaling") or {}
        if rope.get("rope_type") != "llama3" or config.get("attention_bias") or config.get("tie_word_embeddings"):
            raise ModelError(
                "the reference of DeciLMForCausalLM knows rope_scaling of rope_type 'llama3', no attention_bias and no"
                " tied embeddings, as released models have them; this one is different"
            )
        model = cls(config)
        model._tensors = {name: checkpoint.tensor(name).float() for name in model._tensors}
        return model

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, torch.Tensor]]:  # type: ignore[override]
        yield from self._tensors.items()

    def save_pretrained(self, folder: Path) -> None:
        written = {k: v for k, v in vars(self.config).items() if k != "attn_implementation"}
        write_safetensors(folder, written, self._tensors)

    def _shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        c = self.config
        size, width = c.hidden_size, c.num_attention_heads * c.head_dim
        shapes: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (c.vocab_size, size))]
        for i, block in enumerate(c.block_configs):
            name, a, f = f"model.layers.{i}", block["attention"], block["ffn"]
            if not a["no_op"]:
                shapes.append((f"{name}.input_layernorm.weight", (size,)))
            if a["replace_with_linear"]:
                shapes.append((f"{name}.self_attn.linear_attn.weight", (size, size)))
            elif not a["no_op"]:
                kv = width // a["n_heads_in_group"]
                rows = {"q_proj": width, "k_proj": kv, "v_proj": kv}
                shapes += [(f"{name}.self_attn.{part}.weight", (n, size)) for part, n in rows.items()]
                shapes.append((f"{name}.self_attn.o_proj.weight", (size, width)))
            if not f["no_op"]:
                shapes.append((f"{name}.post_attention_layernorm.weight", (size,)))
            if f["replace_with_linear"]:
                shapes.append((f"{name}.mlp.linear_mlp.weight", (size, size)))
            elif not f["no_op"]:
                inner = f.get("intermediate_size") or math.ceil(int(2 * f["ffn_mult"] * size / 3) / 256) * 256
                shapes += [(f"{name}.mlp.{part}_proj.weight", (inner, size)) for part in ("gate", "up")]
                shapes.append((f"{name}.mlp.down_proj.weight", (size, inner)))
        return [*shapes, ("model.norm.weight", (size,)), ("lm_head.weight", (c.vocab_size, size))]

    def forward(self, tokens: torch.Tensor) -> SimpleNamespace:
        (ids,) = tokens
        get = self._tensors
        x = get["model.embed_tokens.weight"][ids]
        for i, block in enumerate(self.config.block_configs):
            name, a, f = f"model.layers.{i}", block["attention"], block["ffn"]
            if not a["no_op"]:
                normed = self._norm(x, f"{name}.input_layernorm")
                linear = f"{name}.self_attn.linear_attn.weight"
                x = x + (normed @ get[linear].T if linear in get else self._attend(normed, f"{name}.self_attn", a))
            if not f["no_op"]:
                normed = self._norm(x, f"{name}.post_attention_layernorm")
                linear = f"{name}.mlp.linear_mlp.weight"
                x = x + (normed @ get[linear].T if linear in get else self._mlp(normed, f"{name}.mlp"))
        logits = self._norm(x, "model.norm") @ get["lm_head.weight"].T
        return SimpleNamespace(logits=logits[None])

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        size = (x.square().mean(-1, keepdim=True) + self.config.rms_norm_eps).sqrt()
        return x / size * self._tensors[f"{name}.weight"]

    def _mlp(self, x: torch.Tensor, name: str) -> torch.Tensor:
        gate, up, down = (self._tensors[f"{name}.{part}_proj.weight"] for part in ("gate", "up", "down"))
        return (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T

    def _attend(self, x: torch.Tensor, name: str, choice: dict[str, Any]) -> torch.Tensor:
        dim, shared, n = self.config.head_dim, choice["n_heads_in_group"], x.shape[0]
        q, k, v = ((x @ self._tensors[f"{name}.{p}_proj.weight"].T).view(n, -1, dim).transpose(0, 1) for p in "qkv")
        q, k = self._rotate(q), self._rotate(k)
        k, v = k.repeat_interleave(shared, 0), v.repeat_interleave(shared, 0)
        later = torch.ones(n, n, dtype=torch.bool).triu(1)
        weights = (q @ k.transpose(1, 2) * dim**-0.5).masked_fill(later, -torch.inf).softmax(-1)
        mixed = (weights @ v).transpose(0, 1).reshape(n, -1)
        return mixed @ self._tensors[f"{name}.o_proj.weight"].T

    def _rotate(self, heads: torch.Tensor) -> torch.Tensor:
        rope, half = self.config.rope_scaling, self.config.head_dim // 2
        inv = self.config.rope_theta ** -(torch.arange(half) / half)
        for i, value in enumerate(inv.tolist()):
            wavelength, original = 2 * math.pi / value, rope["original_max_position_embeddings"]
            low, high = rope["low_freq_factor"], rope["high_freq_factor"]
            if wavelength > original / low:
                inv[i] = value / rope["factor"]
            elif wavelength >= original / high:
                s = (original / wavelength - low) / (high - low)
                inv[i] = (1 - s) * value / rope["factor"] + s * value
        angles = torch.arange(heads.shape[1])[:, None] * inv
        a, b = heads[..., :half], heads[..., half:]
        return torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), -1)
