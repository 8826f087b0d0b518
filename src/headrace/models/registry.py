"""Architecture names, and the module that builds each. A module is imported when its architecture is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from headrace.core.errors import ModelError, did_you_mean
from headrace.layers.base import BuildContext

from .base import Model

ARCHITECTURES: dict[str, str] = {
    "DeciLMForCausalLM": "decilm",
    "Exaone4ForCausalLM": "exaone4",
    "Gemma3ForCausalLM": "gemma3",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "MixtralForCausalLM": "mixtral",
    "NemotronForCausalLM": "nemotron",
    "Phi3ForCausalLM": "phi3",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
}
"""Name in ``architectures`` of a configuration -> module; the class in it has that name."""

ALIASES: dict[str, str] = {
    "LLaMAForCausalLM": "LlamaForCausalLM",
    "NemotronNASForCausalLM": "DeciLMForCausalLM",
}
"""Other names for the same thing."""


def architecture_of(config: Mapping[str, Any]) -> str:
    """The architecture that a configuration names, in its canonical spelling.

    Raises ModelError when it names none, or one that is not supported.
    """
    named = config.get("architectures")
    if not isinstance(named, list | tuple) or not named:
        raise ModelError(
            f"the configuration names no architecture ('architectures' is {named!r}); is it a language model's?"
        )
    name = ALIASES.get(named[0], named[0])
    if name not in ARCHITECTURES:
        raise ModelError(
            f"architecture {name!r} is not supported; there are {', '.join(ARCHITECTURES)}."
            f"{did_you_mean(str(name), ARCHITECTURES)}"
        )
    return name


def build_model(config: Mapping[str, Any], ctx: BuildContext) -> Model:
    """The model of a Hugging Face configuration, without weights or memory for them.

    Raises ModelError when the architecture, or something that the configuration asks of it, is not supported.
    """
    name = architecture_of(config)
    return getattr(importlib.import_module(f".{ARCHITECTURES[name]}", __package__), name)(config, ctx)
