"""Tiny random models of every variant, as references, and as checkpoints in the layout of the hub.

A default initialisation hides errors: norm weights of one, biases of zero, attention that is all but uniform. So every
parameter is drawn anew, and query and key weights are large enough that a wrong mask moves the output.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from headrace.core.errors import ModelError, did_you_mean
from headrace.models.registry import ARCHITECTURES

from .references import DeciLM, RewardModel, transformers
from .tiny_variants import ABSENT, BASE, LABELLED, VARIANTS

LENGTHS = (1, 3, 40, 70, 200)
"""Of prompts: below, at and above the borders of cache blocks (32 tokens) and of windows (8, 40)."""

_SEEING = ("Mllama",)
"""Families that read pictures too: ``vision`` of their settings is the configuration of the tower."""

_SHARPER = 4.0
"""How much larger query and key weights are than others."""


def random_prompts(vocab_size: int, lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    """One prompt for each length, the same ones every time, without the special tokens 0, 1 and 2."""
    rng = random.Random(3)
    return [[rng.randrange(3, vocab_size) for _ in range(length)] for length in lengths]


def names_of(asked: str) -> list[str]:
    """The tiny models of an architecture, the one of that name, or all. Raises ModelError."""
    names = [*VARIANTS, *LABELLED]
    found = [name for name in names if asked in ("all", name, architecture(name))]
    if not found:
        near = did_you_mean(asked, [*names, *ARCHITECTURES])
        raise ModelError(f"there is no tiny model {asked!r}.{near} There are {', '.join(names)}, and all of one"
                         " architecture by its name")  # fmt: skip
    return found


def architecture(name: str) -> str:
    """What a tiny model's configuration calls it."""
    if name in LABELLED:
        return LABELLED[name][0]
    family = VARIANTS[name][0]
    return f"{family}For{'ConditionalGeneration' if family in _SEEING else 'CausalLM'}"


def make(name: str, **changes: Any) -> Any:
    """The reference model of a variant, fp32 and eager; its weights are a function of the name.

    Its call takes [1, T] ids; ``logits`` of what it gives are [1, T, width], or [1, width] where it pools.
    """
    if name in LABELLED:
        return _labelled(name, **changes)
    family, overrides = VARIANTS[name]
    settings = {field: value for field, value in {**BASE, **overrides, **changes}.items() if value is not ABSENT}
    model = _build(family, settings).eval().requires_grad_(False)
    return randomised(model, name, zero_centred=family in ("Gemma3", "Nemotron", "Qwen3Next"))


def _build(family: str, settings: dict[str, Any]) -> Any:
    if family == "DeciLM":
        return DeciLM(settings)
    if family in _SEEING:
        return _build_seeing(family, settings)
    kind = getattr(transformers(), f"{family}ForCausalLM")
    return kind(kind.config_class(**settings))


def _build_seeing(family: str, settings: dict[str, Any]) -> Any:
    """The token after the vocabulary stands for a picture."""
    kind = getattr(transformers(), f"{family}ForConditionalGeneration")
    text = {name: value for name, value in settings.items() if not name.endswith("_implementation")}
    vision, n_tokens = text.pop("vision"), text["vocab_size"]
    config = kind.config_class(
        text_config=text, vision_config=vision, image_token_index=n_tokens, attn_implementation="eager"
    )
    config.vocab_size = n_tokens
    return kind(config)


def _labelled(name: str, **changes: Any) -> Any:
    """A model whose rows end in a head of their own, over the trunk of a variant."""
    kind, trunk, settings = LABELLED[name]
    if trunk is None:
        encoder = getattr(transformers(), kind)
        model = encoder(encoder.config_class(**{**settings, **changes})).eval().requires_grad_(False)
        return randomised(model, name, zero_centred=False)
    decoder = make(trunk)
    decoder.config.update({**settings, **changes})
    if kind in RewardModel.N_OUT:
        return randomised_head(RewardModel(kind, decoder))
    model = getattr(transformers(), kind)(decoder.config).eval().requires_grad_(False)
    model.model.load_state_dict(decoder.model.state_dict())
    return randomised_head(model)


def randomised_head(model: Any) -> Any:
    """The model, its ``score`` drawn anew, so large that labels differ."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.score.parameters():
        noise = torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5
        parameter.copy_(3.0 * noise if parameter.dim() > 1 else noise)
    return model


def randomised(model: Any, seed: str, *, zero_centred: bool = False) -> Any:
    """The model, every parameter drawn anew as a function of ``seed``. ``zero_centred``: norms store weight - 1."""
    generator = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
    corrections = [(name, buffer) for name, buffer in model.named_buffers() if name.endswith("correction_bias")]
    for name, parameter in [*model.named_parameters(), *corrections]:
        randomise(name, parameter, generator, zero_centred=zero_centred)
        if name.endswith("qkv_proj.weight"):
            values = model.config.num_key_value_heads * model.model.layers[0].self_attn.head_dim
            parameter[:-values] *= _SHARPER
    return model


def randomise(name: str, parameter: torch.Tensor, generator: torch.Generator, *, zero_centred: bool) -> None:
    """Fills one parameter, by what its name says it is."""
    noise = torch.randn(parameter.shape, generator=generator)
    if name.endswith("linear_attn.norm.weight"):
        parameter.copy_(0.1 * noise + 1.0)
    elif name.endswith(("norm.weight", "norm_f.weight", "LayerNorm.weight", "norm_pre.weight", "norm_post.weight")):
        parameter.copy_(0.1 * noise + (0.0 if zero_centred else 1.0))
    elif name.endswith(("_gate", ".gate", "gate_attn", "gate_ffn")):
        parameter.copy_(0.2 * noise + 0.5)
    elif name.endswith("sinks"):
        parameter.copy_(2.0 * noise)
    elif name.endswith("dt_bias"):
        # Time steps short enough for a state to remember a hundred tokens, in some heads at least.
        parameter.copy_(noise - 3.0)
    elif name.endswith((".A_log", ".D", "conv1d.weight")):
        parameter.copy_(0.5 * noise)
    elif parameter.dim() == 1 or name.endswith("bias"):
        parameter.copy_(0.1 * noise)
    elif "embed" in name:
        parameter.copy_(noise * (1.0 if name.startswith("bert.") else 0.3))
    else:
        parameter.copy_(noise * parameter.shape[1] ** -0.5 * _gain(name))


def _gain(name: str) -> float:
    if name.startswith("bert."):
        return 3.0 if "query" in name or "key" in name else 1.5
    return _SHARPER if any(part in name for part in ("q_proj", "k_proj", "q_b_proj", "kv_a_proj")) else 1.0


def save(model: Any, folder: Path) -> Path:
    """Writes the model's checkpoint."""
    model.save_pretrained(folder)
    if type(model).__name__ == "MllamaForConditionalGeneration":
        # The reference keeps the states that leave these layers. The files of the hub, and the code that they were made
        # with, mean those that enter them.
        file = folder / "config.json"
        config = json.loads(file.read_text())
        taken = config["vision_config"]["intermediate_layers_indices"]
        config["vision_config"]["intermediate_layers_indices"] = [index + 1 for index in taken]
        file.write_text(json.dumps(config))
    return folder
