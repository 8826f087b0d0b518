"""BERT with labels: an encoder, which reads a prompt as a whole and keeps nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from headrace.core.errors import ModelError
from headrace.core.pooling import PoolingSpec
from headrace.layers.base import BuildContext, Layer
from headrace.layers.embedding import Embedding
from headrace.layers.encoder import EncoderBlock
from headrace.layers.norm import LayerNorm
from headrace.layers.score import PooledScores
from headrace.ops.batch import Batch
from headrace.weights.checkpoint import Checkpoint
from headrace.weights.renamed import Renamed

from .base import Decoder
from .classification import activation_of, labels_of
from .config import Fields
from .loading import Progress, no_progress

_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
"""Ends of names in old files, and what they are called now."""


class _Embeddings(Layer):
    """norm(word + position + type), the type being which of two texts a token belongs to."""

    def __init__(self, ctx: BuildContext, name: str, sizes: Mapping[str, int], hidden_size: int, eps: float) -> None:
        self._add = ctx.ops.add
        self.words, self.positions, self.types = (
            Embedding(ctx, f"{name}.{kind}_embeddings", sizes[kind], hidden_size)
            for kind in ("word", "position", "token_type")
        )
        self.norm = LayerNorm(ctx, f"{name}.LayerNorm", hidden_size, eps)

    def __call__(self, batch: Batch) -> torch.Tensor:
        """[T, hidden]."""
        types = torch.zeros_like(batch.positions)
        if batch.second_from is not None:
            types += batch.positions >= batch.second_from.repeat_interleave(batch.query_starts.diff())
        x = self._add(self.words(batch.input_ids), self.positions(batch.positions))
        return self.norm(self._add(x, self.types(types)))


class BertForSequenceClassification(Decoder):
    """The first token's state goes through a dense layer and tanh; labels are linear in that."""

    reads_whole_prompts = True

    def __init__(self, config: Mapping[str, Any], ctx: BuildContext) -> None:
        fields = Fields(config, "BertForSequenceClassification")
        fields.choice("hidden_act", ("gelu",), "gelu")
        fields.choice("position_embedding_type", ("absolute",), "absolute")
        for name in ("is_decoder", "add_cross_attention"):
            fields.refuse(name, "only the encoder is here")
        size, n_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
        if size % n_heads:
            raise ModelError(
                f"{fields.where}: hidden_size = {size} must be a multiple of num_attention_heads = {n_heads}"
            )
        eps, labels = fields.number("layer_norm_eps", 1e-12), labels_of(fields)
        sizes = {
            "word": fields.integer("vocab_size"),
            "position": fields.integer("max_position_embeddings"),
            "token_type": fields.integer("type_vocab_size", 2, at_least=2),
        }
        super().__init__(sizes["word"], sizes["position"], tied=False)
        self._ignored = ("embeddings.position_ids",)
        self.embed = _Embeddings(ctx, "bert.embeddings", sizes, size, eps)
        self.layers = tuple(
            EncoderBlock(ctx, f"bert.encoder.layer.{i}", size, n_heads, fields.integer("intermediate_size"), eps)
            for i in range(fields.integer("num_hidden_layers"))
        )
        spec = PoolingSpec(
            gives="classification",
            width=len(labels),
            pooling_type="cls",
            pooling_types=("cls",),
            activation=activation_of(fields, len(labels)),
            labels=labels,
            generates=False,
        )
        self.end_with(PooledScores(ctx, "bert.pooler.dense", "classifier", size, len(labels)), spec)

    def load(self, checkpoint: Checkpoint, progress: Progress = no_progress, threads: int = 1) -> None:
        super().load(Renamed(checkpoint, _OLD_NAMES), progress, threads)

    def forward(self, batch: Batch) -> torch.Tensor:
        x = self.embed(batch)
        for layer in self.layers:
            x = layer(x, batch)
        return x
