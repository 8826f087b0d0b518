"""Decoders with labels instead of a vocabulary: ``...ForSequenceClassification`` of every family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from headrace.core.errors import ModelError
from headrace.core.pooling import Activation, PoolingSpec
from headrace.layers.base import BuildContext
from headrace.layers.score import Scores

from .base import Decoder
from .config import Fields
from .exaone4 import Exaone4ForCausalLM
from .gemma3 import Gemma3ForCausalLM
from .llama import LlamaForCausalLM
from .mistral import MistralForCausalLM
from .nemotron import NemotronForCausalLM
from .phi3 import Phi3ForCausalLM
from .qwen2 import Qwen2ForCausalLM
from .qwen3 import Qwen3ForCausalLM

Build = Callable[[Mapping[str, Any], BuildContext], Decoder]


def labels_of(fields: Fields) -> tuple[str, ...]:
    """Names of the labels by id: ``id2label``, else ``num_labels`` (2 by default) of transformers' own names."""
    named = {int(number): str(label) for number, label in fields.mapping("id2label").items()}
    count = len(named) or fields.integer("num_labels", 2)
    if named and sorted(named) != list(range(count)):
        raise ModelError(f"{fields.where}: id2label must name the labels 0 to {count - 1}, got {sorted(named)}")
    return tuple(named.get(i, f"LABEL_{i}") for i in range(count))


def activation_of(fields: Fields, n_labels: int) -> Activation:
    """What makes probabilities of the logits: ``problem_type``, else sigmoid for one label and softmax for several."""
    kinds: dict[str, Activation] = {
        "regression": "none",
        "single_label_classification": "softmax",
        "multi_label_classification": "sigmoid",
        "": "sigmoid" if n_labels == 1 else "softmax",
    }
    return kinds[fields.choice("problem_type", tuple(kinds), "")]


def _classifier(decoder: Build) -> Build:
    """The same decoder, and a linear map without bias on its last row."""

    def build(config: Mapping[str, Any], ctx: BuildContext) -> Decoder:
        fields = Fields(config, "ForSequenceClassification")
        labels = labels_of(fields)
        spec = PoolingSpec(
            gives="classification",
            width=len(labels),
            pooling_types=("last", "all"),
            activation=activation_of(fields, len(labels)),
            labels=labels,
            generates=False,
        )
        return decoder(config, ctx).end_with(Scores(ctx, "score", fields.integer("hidden_size"), len(labels)), spec)

    return build


Exaone4ForSequenceClassification = _classifier(Exaone4ForCausalLM)
Gemma3TextForSequenceClassification = _classifier(Gemma3ForCausalLM)
LlamaForSequenceClassification = _classifier(LlamaForCausalLM)
MistralForSequenceClassification = _classifier(MistralForCausalLM)
NemotronForSequenceClassification = _classifier(NemotronForCausalLM)
Phi3ForSequenceClassification = _classifier(Phi3ForCausalLM)
Qwen2ForSequenceClassification = _classifier(Qwen2ForCausalLM)
Qwen3ForSequenceClassification = _classifier(Qwen3ForCausalLM)
