"""Random EAGLE-3 heads in the public layout, and what they compute, in plain torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.nn import functional as F

from headrace.runner.head_rows import HeadRows
from headrace.weights.dummy import write_safetensors

LAYER_IDS = (2, 3)
"""Of the states that these heads read: inputs of those layers, which is outputs of layers 1 and 2."""


def write_head(folder: Path, target: Path, *, draft_vocab: int | None = 40, seed: int = 0, **changes: Any) -> Path:
    """A head for the model in ``target``; ``draft_vocab=None``: the target's vocabulary and its own head."""
    config = json.loads((target / "config.json").read_text())
    of = config.get("text_config", config)
    hidden, vocab = of["hidden_size"], of["vocab_size"]
    config = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "hidden_size": hidden,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_hidden_layers": 1,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 256,
        "vocab_size": vocab,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": list(LAYER_IDS)},
        **({} if draft_vocab is None else {"draft_vocab_size": draft_vocab}),
        **changes,
    }
    return write_safetensors(folder, config, head_tensors(config, draft_vocab, seed))


def head_tensors(config: dict[str, Any], draft_vocab: int | None, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries, keys = (
        config["num_attention_heads"] * config["head_dim"],
        config["num_key_value_heads"] * config["head_dim"],
    )

    def matrix(n_out: int, n_in: int, sharper: float = 1.0) -> torch.Tensor:
        return sharper * torch.randn(n_out, n_in, generator=generator) * n_in**-0.5

    def norm(size: int) -> torch.Tensor:
        return 1 + 0.1 * torch.randn(size, generator=generator)

    layer = {
        "hidden_norm.weight": norm(hidden),
        "input_layernorm.weight": norm(hidden),
        "post_attention_layernorm.weight": norm(hidden),
        "self_attn.q_proj.weight": matrix(queries, 2 * hidden, 3.0),
        "self_attn.k_proj.weight": matrix(keys, 2 * hidden, 3.0),
        "self_attn.v_proj.weight": matrix(keys, 2 * hidden),
        "self_attn.o_proj.weight": matrix(hidden, queries),
        "mlp.gate_proj.weight": matrix(inner, hidden),
        "mlp.up_proj.weight": matrix(inner, hidden),
        "mlp.down_proj.weight": matrix(hidden, inner),
    }
    tensors = {f"midlayer.{name}": tensor for name, tensor in layer.items()}
    tensors |= {"fc.weight": matrix(hidden, len(LAYER_IDS) * hidden), "norm.weight": norm(hidden)}
    if draft_vocab is not None:
        ids = torch.randperm(vocab, generator=generator)[:draft_vocab].sort().values
        known = torch.zeros(vocab, dtype=torch.bool)
        known[ids] = True
        tensors |= {
            "lm_head.weight": matrix(draft_vocab, hidden, 3.0),
            "d2t": ids - torch.arange(draft_vocab),
            "t2d": known,
        }
    return tensors


def guess(
    config: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    states: torch.Tensor,
    embedded: torch.Tensor,
    head: torch.Tensor,
) -> torch.Tensor:
    """Logits of the last row, [draft vocab].

    Args:
        states: [S, n_states], the target's after tokens 0 .. S - 1.
        embedded: [S + drafts, hidden], of tokens 1 .. S + drafts: rows from S on read what the head made itself.
        head: [draft vocab, hidden].
    """
    t = {name.removeprefix("midlayer."): tensor for name, tensor in tensors.items()}
    eps, dim, eagle = config["rms_norm_eps"], config["head_dim"], config["eagle_config"]
    each = config["num_attention_heads"] // config["num_key_value_heads"]
    frequencies = config["rope_theta"] ** -(torch.arange(0, dim, 2) / dim)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * t[f"{name}.weight"]

    def turned(x: torch.Tensor, position: int) -> torch.Tensor:
        heads = x.view(-1, dim)
        angles = position * frequencies
        a, b = heads.chunk(2, 1)
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], 1)

    keys, values, made = [], [], torch.zeros(0)
    for position in range(len(embedded)):
        x = made
        if position < len(states):
            read = states[position]
            x = t["fc.weight"] @ (norm(read, "input_norm") if eagle.get("norm_before_fc") else read)
        both = torch.cat([norm(embedded[position], "input_layernorm"), norm(x, "hidden_norm")])
        q = turned(t["self_attn.q_proj.weight"] @ both, position)
        keys.append(turned(t["self_attn.k_proj.weight"] @ both, position).repeat_interleave(each, 0))
        values.append((t["self_attn.v_proj.weight"] @ both).view(-1, dim).repeat_interleave(each, 0))
        scores = torch.einsum("hd,shd->hs", q, torch.stack(keys)) * dim**-0.5
        mixed = torch.einsum("hs,shd->hd", scores.softmax(1), torch.stack(values)).flatten()
        residual = norm(x, "hidden_norm") if config.get("norm_before_residual") else x
        h = residual + t["self_attn.o_proj.weight"] @ mixed
        wide = norm(h, "post_attention_layernorm")
        gated = F.silu(t["mlp.gate_proj.weight"] @ wide) * (t["mlp.up_proj.weight"] @ wide)
        h = h + t["mlp.down_proj.weight"] @ gated
        made = norm(h, "norm") if config.get("norm_output") else h
    return head @ norm(h, "norm")


class Seen:
    """What heads have drawn from: token ids known at the time, drafts among them, and logits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.draws: list[tuple[list[int], int, torch.Tensor]] = []
        draw = HeadRows.draw

        def noting(rows: Any, slots: Any, logits: torch.Tensor, length: int) -> Any:
            table = rows.slots
            for slot, row in zip(slots.tolist(), logits, strict=True):
                history = table.history[slot, : table.known[slot] + length].tolist()
                self.draws.append((history, length, row.clone()))
            return draw(rows, slots, logits, length)

        monkeypatch.setattr(HeadRows, "draw", noting)


def error(folder: Path, head: Path, draws: list[tuple[list[int], int, torch.Tensor]], skipped: int = 0) -> float:
    """The largest difference from the plain computation, of a head that has not read the first ``skipped`` tokens."""
    config, tensors = json.loads((head / "config.json").read_text()), load_file(head / "model.safetensors")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    table = tensors.get("embed_tokens.weight", model.get_input_embeddings().weight)
    own = tensors.get("lm_head.weight", model.get_output_embeddings().weight)
    worst = 0.0
    with torch.no_grad():
        for history, n_drafts, logits in draws:
            known = len(history) - n_drafts
            ids = torch.tensor([history])
            hidden = model.model(ids[:, : known - 1], output_hidden_states=True).hidden_states
            # Inputs of layers 2 and 3 of three: the last is what the final norm reads, which transformers hides.
            states = torch.cat([hidden[2][0], _before_norm(model, ids[:, : known - 1])], 1)
            wanted = guess(config, tensors, states[skipped:], table[ids[0, 1 + skipped :]], own)
            worst = max(worst, (wanted - logits).abs().max().item())
    return worst


def _before_norm(model: Any, ids: torch.Tensor) -> torch.Tensor:
    kept = []
    hook = model.model.norm.register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    model.model(ids)
    hook.remove()
    return kept[0][0]
