"""MTP layers as draft heads: which a checkpoint has, and what they share with the model that they draft for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from headrace.core.errors import ConfigError
from headrace.layers.base import BuildContext
from headrace.ops.batch import Batch
from headrace.weights.checkpoint import Checkpoint

from . import llama_mtp
from .base import Decoder
from .mtp_layer import MtpLayer
from .registry import ARCHITECTURES, architecture_of, own_class
from .taps import Taps

_FIELD = "MTPDecodingConfig"


class MtpHead(Decoder):
    """A layer with the table and the head of its target. Row t of a batch holds a token after t, and beside it
    (``Batch.states``) the target's state behind its final norm after token t, or what such a layer made of a row
    before. Its logits are over the target's vocabulary."""

    def __init__(self, target: Decoder, layer: MtpLayer) -> None:
        super().__init__(target.vocab_size, target.max_positions, tied=False)
        self.look_below(*layer.names.below)
        # Calls, not layers: what belongs to the target is not the layer's to load. Some files repeat both.
        self._ignored = (*self._ignored, "embed_tokens.weight", "shared_head.head.weight")
        self._embed = target.embed.__call__  # type: ignore[attr-defined]
        self.head = target.head.__call__  # type: ignore[assignment]
        self.layer = layer
        self.taps = Taps((layer.norm,))
        """What the next guess reads in place of the target's states."""
        self.token_ids = torch.arange(target.vocab_size)
        """[vocab_size] int64: draft tokens in the target's vocabulary."""

    def forward(self, batch: Batch) -> torch.Tensor:
        assert batch.states is not None
        return self.layer(self._embed(batch.input_ids), batch.states, batch)


def is_mtp_folder(config: Mapping[str, Any]) -> bool:
    """Whether a folder with this configuration is an MTP layer and nothing else."""
    return llama_mtp.ARCHITECTURE in (config.get("architectures") or ())


def carries_mtp(config: Mapping[str, Any], names: Collection[str]) -> bool:
    """Whether a checkpoint with tensors of these names has an MTP layer for its own model."""
    architecture = architecture_of(config)
    prefix = getattr(own_class(architecture), "mtp_prefix", None) if architecture in ARCHITECTURES else None
    return prefix is not None and any(name.startswith(prefix(config)) for name in names)


def mtp_heads(
    config: Mapping[str, Any], ctx: BuildContext, checkpoint: Checkpoint | None, target: Decoder, where: str
) -> list[MtpHead]:
    """The MTP layers of a checkpoint, as heads of ``target``; at least one.

    Args:
        checkpoint: None for random weights, of which there are as many as ``config`` says.
        where: what errors call the checkpoint.

    Raises:
        ConfigError: there are none, or they were made for another model.
    """
    heads = [MtpHead(target, layer) for layer in _layers(config, ctx, where)]
    if checkpoint is not None:
        names = checkpoint.names()
        heads = [one for one in heads if any(name.startswith(one.layer.names.below) for name in names)]
    if not heads:
        raise ConfigError(
            f"{_FIELD}: {where} has no MTP layer: its configuration names one at most, and there are no tensors of it;"
            " set speculative_model to a folder that has one"
        )
    size, vocab_size = heads[0].layer.hidden_size, int(config["vocab_size"])
    sizes = (target.head.weight.shape[1], target.vocab_size)
    if (size, vocab_size) != sizes:
        raise ConfigError(
            f"{_FIELD}.speculative_model: {where} was made for hidden_size = {size} and {vocab_size} tokens, the model"
            f" has {sizes[0]} and {sizes[1]}; an MTP layer belongs to one model"
        )
    return heads


def _layers(config: Mapping[str, Any], ctx: BuildContext, where: str) -> Sequence[MtpLayer]:
    if is_mtp_folder(config):
        return llama_mtp.mtp_layers(config, ctx)
    architecture = architecture_of(config)
    make = getattr(own_class(architecture), "mtp_layers", None) if architecture in ARCHITECTURES else None
    if make is None:
        raise ConfigError(
            f"{_FIELD}: {where} is a {architecture}, which carries no MTP layer; set speculative_model to a folder that"
            f" has one, a {llama_mtp.ARCHITECTURE} for example, which goes with any model"
        )
    return make(config, ctx)
