"""Architecture names, and what builds each: a module here, or a class of an installed package that says so.

A module is imported when its architecture is asked for. How a package adds one: docs/architectures.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from headrace.core.errors import ModelError, did_you_mean
from headrace.layers.base import BuildContext

from .base import Model

ARCHITECTURES: dict[str, str] = {
    "DeciLMForCausalLM": "decilm",
    "DeepseekV3ForCausalLM": "deepseek_v3",
    "Exaone4ForCausalLM": "exaone4",
    "Gemma3ForCausalLM": "gemma3",
    "GptOssForCausalLM": "gpt_oss",
    "Llama4ForCausalLM": "llama4",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "MixtralForCausalLM": "mixtral",
    "MllamaForConditionalGeneration": "mllama",
    "NemotronForCausalLM": "nemotron",
    "NemotronHForCausalLM": "nemotron_h",
    "Phi3ForCausalLM": "phi3",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "Qwen3NextForCausalLM": "qwen3_next",
    # What is only encoded.
    "BertForSequenceClassification": "bert",
    "Exaone4ForSequenceClassification": "classification",
    "Gemma3TextForSequenceClassification": "classification",
    "LlamaForSequenceClassification": "classification",
    "MistralForSequenceClassification": "classification",
    "NemotronForSequenceClassification": "classification",
    "Phi3ForSequenceClassification": "classification",
    "Qwen2ForProcessRewardModel": "reward",
    "Qwen2ForRewardModel": "reward",
    "Qwen2ForSequenceClassification": "classification",
    "Qwen3ForSequenceClassification": "classification",
}
"""Name in ``architectures`` of a configuration -> module; the class in it has that name."""

ALIASES: dict[str, str] = {
    "LLaMAForCausalLM": "LlamaForCausalLM",
    "Llama4ForConditionalGeneration": "Llama4ForCausalLM",
    "NemotronNASForCausalLM": "DeciLMForCausalLM",
}
"""Other names for the same thing."""

GROUP = "headrace.architectures"
"""Entry points of packages that bring an architecture: its name = module:class."""


def architecture_of(config: Mapping[str, Any]) -> str:
    """The architecture that a configuration names, in its canonical spelling.

    Raises ModelError when it names none, or one that is not supported: then with the nearest that is.
    """
    named = config.get("architectures")
    if not isinstance(named, list | tuple) or not named:
        raise ModelError(
            f"the configuration names no architecture ('architectures' is {named!r}); is it a language model's?"
        )
    name, known = ALIASES.get(named[0], named[0]), [*ARCHITECTURES, *added()]
    if name in known:
        return name
    from .nearest import nearest

    # Names end alike, and a family's next version is no slip of the pen.
    typo = did_you_mean(str(name), [other for other in known if _letters(other) != _letters(str(name))], cutoff=0.9)
    raise ModelError(
        f"architecture {name!r} is not supported; there are {', '.join(known)}.{typo}{nearest(config)}"
        f" A package can add an architecture: entry point group {GROUP!r}, docs/architectures.md."
    )


def added() -> dict[str, EntryPoint]:
    """Architectures that installed packages bring.

    Raises ModelError when two bring the same one, or one brings what is here already.
    """
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        if point.name in ARCHITECTURES or point.name in ALIASES:
            raise ModelError(
                f"{_owner(point)} brings the architecture {point.name!r}, which headrace has itself; uninstall it, or"
                " let it use a name of its own"
            )
        if point.name in found and found[point.name].value != point.value:
            raise ModelError(
                f"{_owner(found[point.name])} and {_owner(point)} both bring the architecture {point.name!r}; uninstall"
                " one of them"
            )
        found[point.name] = point
    return found


def build_model(config: Mapping[str, Any], ctx: BuildContext) -> Model:
    """The model of a Hugging Face configuration, without weights or memory for them.

    Raises ModelError when the architecture, or something that the configuration asks of it, is not supported.
    """
    name = architecture_of(config)
    if name in ARCHITECTURES:
        return own_class(name)(config, ctx)
    return _load(added()[name])(config, ctx)


def own_class(name: str) -> Callable[[Mapping[str, Any], BuildContext], Model]:
    """The class of one of ``ARCHITECTURES``."""
    return getattr(importlib.import_module(f".{ARCHITECTURES[name]}", __package__), name)


def _letters(name: str) -> str:
    return "".join(filter(str.isalpha, name))


def _load(point: EntryPoint) -> Callable[[Mapping[str, Any], BuildContext], Model]:
    try:
        return point.load()
    except Exception as error:
        raise ModelError(
            f"{_owner(point)} brings the architecture {point.name!r}, but {point.value!r} cannot be loaded:"
            f" {type(error).__name__}: {error}"
        ) from error


def _owner(point: EntryPoint) -> str:
    return f"package {point.dist.name!r}" if point.dist is not None else f"entry point {point.value!r}"
