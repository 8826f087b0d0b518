"""Which heads can be trained: what each kind reads, how it begins, and what its folder holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from headrace.core.errors import ConfigError

from .eagle3 import TrainableHead
from .layers import HeadShape
from .lessons import Lesson
from .mtp import TrainableMtp
from .start import first_mtp_weights, first_weights
from .trainer import DraftVocabulary, Trainable, whole_vocabulary


@dataclass(frozen=True, slots=True)
class Tables:
    """Of the model, fp32."""

    embedding: torch.Tensor
    """[vocab, hidden]."""
    norm: torch.Tensor
    """[hidden], the weight of its final norm."""
    head: torch.Tensor
    """[vocab, hidden]."""


class HeadKind(Protocol):
    """One kind of heads."""

    of_layers: bool
    """It reads states of the usual layers; else what the model's head reads."""

    def config(self, target: dict[str, Any], draft_vocab: int) -> dict[str, Any]:
        """``config.json`` of a head for a model with the configuration ``target``. Raises ``ConfigError``."""
        ...

    def make(self, config: dict[str, Any], n_states: int) -> Trainable: ...

    def begin(self, head: Any, lessons: Sequence[Lesson], tables: Tables, vocabulary: DraftVocabulary) -> None:
        """Gives the head its first weights."""
        ...

    def finish(self, head: Any, tables: Tables, vocabulary: DraftVocabulary) -> DraftVocabulary:
        """Training is over: what it guesses from now on."""
        ...

    def tensors(self, head: Any, vocabulary: DraftVocabulary) -> dict[str, torch.Tensor]:
        """Of its folder, by their public names."""
        ...


class _Eagle3:
    of_layers = True

    def config(self, target: dict[str, Any], draft_vocab: int) -> dict[str, Any]:
        n_layers = target["num_hidden_layers"]
        if n_layers <= 5:
            raise ConfigError(
                f"the model has {n_layers} layers; an EAGLE-3 head reads three of at least 6. --kind mtp goes with any"
            )
        return {
            **_shape(target, draft_vocab),
            "architectures": ["LlamaForCausalLMEagle3"],
            "target_hidden_size": target["hidden_size"],
            "eagle_config": {
                "use_aux_hidden_state": True,
                "eagle_aux_hidden_state_layer_ids": [1, n_layers // 2 - 1, n_layers - 4],
            },
        }

    def make(self, config: dict[str, Any], n_states: int) -> Trainable:
        return TrainableHead(HeadShape(config), n_states)

    def begin(
        self, head: TrainableHead, lessons: Sequence[Lesson], tables: Tables, vocabulary: DraftVocabulary
    ) -> None:
        first_weights(head, lessons, tables.embedding, tables.norm, tables.head[vocabulary.ids])

    def finish(self, head: TrainableHead, tables: Tables, vocabulary: DraftVocabulary) -> DraftVocabulary:
        return vocabulary

    def tensors(self, head: TrainableHead, vocabulary: DraftVocabulary) -> dict[str, torch.Tensor]:
        return _stored(head) | {"d2t": vocabulary.offsets, "t2d": vocabulary.draft_of >= 0}


class _Mtp:
    of_layers = False

    def config(self, target: dict[str, Any], draft_vocab: int) -> dict[str, Any]:
        return {**_shape(target, draft_vocab), "architectures": ["LlamaMTPModel"]}

    def make(self, config: dict[str, Any], n_states: int) -> Trainable:
        return TrainableMtp(HeadShape(config))

    def begin(self, head: TrainableMtp, lessons: Sequence[Lesson], tables: Tables, vocabulary: DraftVocabulary) -> None:
        first_mtp_weights(head, lessons, tables.embedding, tables.norm, tables.head[vocabulary.ids])

    def finish(self, head: TrainableMtp, tables: Tables, vocabulary: DraftVocabulary) -> DraftVocabulary:
        """It learns with some rows of the model's head, which is faster, and drafts with all of them."""
        head.lm_head.weight = torch.nn.Parameter(tables.head)
        return whole_vocabulary(len(tables.head))

    def tensors(self, head: TrainableMtp, vocabulary: DraftVocabulary) -> dict[str, torch.Tensor]:
        return {f"mtp.{name}": one for name, one in _stored(head).items() if not name.startswith("lm_head.")}


KINDS: dict[str, HeadKind] = {"eagle3": _Eagle3(), "mtp": _Mtp()}


def _stored(head: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().to(torch.bfloat16) for name, tensor in head.state_dict().items()}


def _shape(target: dict[str, Any], draft_vocab: int) -> dict[str, Any]:
    """One layer of Llama's kind, as wide as the model."""
    hidden, n_heads = target["hidden_size"], target["num_attention_heads"]
    if hidden % n_heads or hidden // n_heads % 2:
        n_heads = max(n for n in range(1, n_heads + 1) if hidden % (2 * n) == 0)
    n_kv_heads = target.get("num_key_value_heads") or n_heads
    rope = target.get("rope_parameters") or {}
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": target.get("intermediate_size") or 2 * hidden,
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_kv_heads if n_heads % n_kv_heads == 0 else n_heads,
        "head_dim": hidden // n_heads,
        "num_hidden_layers": 1,
        "hidden_act": "silu",
        "rms_norm_eps": target.get("rms_norm_eps") or 1e-5,
        "rope_theta": target.get("rope_theta") or rope.get("rope_theta") or 10000.0,
        "max_position_embeddings": target["max_position_embeddings"],
        "vocab_size": target["vocab_size"],
        "draft_vocab_size": min(draft_vocab, target["vocab_size"]),
        "tie_word_embeddings": False,
    }
