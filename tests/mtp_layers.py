"""Random MTP layers beside tiny models, in every public layout, and what they compute: transformers' own blocks in a
plain loop."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from headrace.eval import tiny

FILE = "model-mtp.safetensors"


class MtpLayer(nn.Module):
    """norm(blocks(W [norm e | norm h])); ``others``: its parts but the blocks, as its family's files call them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.family = type(model).__name__.removesuffix("ForCausalLM")
        config = copy.deepcopy(model.config)
        trunk = model.model
        block = type(trunk.layers[0])
        if self.family == "NemotronH":
            config.layers_block_type = list(config.mtp_layers_block_type)
            kinds = range(len(config.layers_block_type))
        else:
            # A layer of experts and of full attention.
            config.layer_types, kinds = ["full_attention"] * 8, range(7, 8)
        self.blocks = nn.ModuleList(block(config, index) for index in kinds)
        # Where there is a ``layer_norm_epsilon``, the ``rms_norm_eps`` beside it is read by nothing.
        size, eps = config.hidden_size, getattr(config, "layer_norm_epsilon", None) or config.rms_norm_eps
        norm = type(next(part for name, part in self.blocks[0].named_modules() if name.endswith("norm")))
        self.enorm, self.hnorm, self.norm = (norm(size, eps=eps) for _ in range(3))
        self.eh_proj = nn.Linear(2 * size, size, bias=False)
        # What belongs to the model stays out of the tree.
        self._shared = [getattr(trunk, "rotary_emb", None)]

    @torch.no_grad()
    def forward(self, e: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """[T, hidden] twice -> [T, hidden], every row with all before it."""
        x = self.eh_proj(torch.cat([self.enorm(e), self.hnorm(h)], 1))[None]
        n = len(e)
        mask = torch.full((n, n), float("-inf")).triu(1)[None, None]
        options = {"attention_mask": mask, "position_ids": torch.arange(n)[None]}
        if self._shared[0] is not None:
            options["position_embeddings"] = self._shared[0](x, options["position_ids"])
        for block in self.blocks:
            x = block(x, **options)
        return self.norm(x)[0]

    def tensors(self, index: int = 0, n_layers: int = 0) -> dict[str, torch.Tensor]:
        """As files have them: the ``index``-th such layer, of a model of ``n_layers``."""
        first = index * len(self.blocks)
        if self.family == "DeepseekV3":
            names = [f"model.layers.{n_layers + index}"]
            around = [f"{names[0]}.{part}" for part in ("enorm", "hnorm", "eh_proj", "shared_head.norm")]
        else:
            names = [f"mtp.layers.{first + i}" for i in range(len(self.blocks))]
            around = ["mtp.pre_fc_norm_embedding", "mtp.pre_fc_norm_hidden", "mtp.fc", "mtp.norm"]
            if self.family == "NemotronH":
                around = [f"{names[0]}.{part}" for part in ("enorm", "hnorm", "eh_proj")]
                around.append(f"{names[-1]}.final_layernorm")
        parts = (self.enorm, self.hnorm, self.eh_proj, self.norm)
        found = {f"{name}.weight": part.weight for name, part in zip(around, parts, strict=True)}
        for name, block in zip(names, self.blocks, strict=True):
            for inner, tensor in block.state_dict().items():
                found |= {f"{name}.{one}": part for one, part in _separate(inner, tensor)}
        return {name: tensor.detach().clone() for name, tensor in found.items()}


def _separate(name: str, tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """The reference stacks experts, files do not."""
    stem, _, last = name.rpartition(".")
    if not stem.endswith("experts"):
        return [(name, tensor)]
    found = []
    for index, expert in enumerate(tensor):
        parts = (
            zip(("gate_proj", "up_proj"), expert.chunk(2), strict=True) if last == "gate_up_proj" else [(last, expert)]
        )
        found += [(f"{stem}.{index}.{part}.weight", rows) for part, rows in parts]
    return found


def make_layer(model: Any, seed: str) -> MtpLayer:
    """A random layer for a model: some of its guesses are right, as drafts share the noise of the draws."""
    layer = MtpLayer(model).eval().requires_grad_(False)
    return tiny.randomised(layer, seed, zero_centred=layer.family == "Qwen3Next")


def add_layers(folder: Path, layers: list[MtpLayer]) -> None:
    """Puts layers into the checkpoint of their model, in a file of their own."""
    config = json.loads((folder / "config.json").read_text())
    config["num_nextn_predict_layers"] = len(layers)
    (folder / "config.json").write_text(json.dumps(config))
    tensors: dict[str, torch.Tensor] = {}
    for index, layer in enumerate(layers):
        tensors |= layer.tensors(index, config.get("num_hidden_layers", 0))
    save_file(tensors, folder / FILE)
    stored = load_file(folder / "model.safetensors")
    weight_map = dict.fromkeys(stored, "model.safetensors") | dict.fromkeys(tensors, FILE)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def write_layer(folder: Path, target: Path, layer: MtpLayer) -> Path:
    """A layer of Llama's kind in a folder of its own, for any model."""
    of = json.loads((target / "config.json").read_text())
    of = of.get("text_config", of)
    config = layer_config(of["hidden_size"], of["vocab_size"])
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaMTPModel"]}))
    save_file(layer.tensors(), folder / "model.safetensors")
    return folder


def layer_config(hidden_size: int, vocab_size: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden_size,
        "vocab_size": vocab_size,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_hidden_layers": 1,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 256,
        "rope_theta": 10000.0,
    }


def make_llama_layer(hidden_size: int, vocab_size: int) -> MtpLayer:
    config = transformers.LlamaConfig(**layer_config(hidden_size, vocab_size), attn_implementation="eager")
    return make_layer(transformers.LlamaForCausalLM(config), "llama-mtp")


CARRY = ("DeepseekV3", "Qwen3Next", "NemotronH")
"""Families whose checkpoints have layers of their own."""


def write_mtp(folder: Path, model: Any, name: str) -> MtpLayer:
    """A layer in the model's own checkpoint, or else one of Llama's kind in the folder ``name`` beside it."""
    family = type(model).__name__.removesuffix("ForCausalLM")
    if family in CARRY:
        layer = make_layer(model, family)
        add_layers(folder, [layer])
        return layer
    of = json.loads((folder / "config.json").read_text())
    of = of.get("text_config", of)
    layer = make_llama_layer(of["hidden_size"], of["vocab_size"])
    write_layer(folder / name, folder, layer)
    return layer
