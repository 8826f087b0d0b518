"""Which scheme of weights a setting stands for."""

from __future__ import annotations

import logging

from headrace.core.errors import ConfigError
from headrace.quant.formats import INT4, INT8
from headrace.quant.schemes import NO_SCHEME, AtLoad, FromFile, RoundBlocks, Scheme
from headrace.weights.checkpoint import Checkpoint
from headrace.weights.gguf import GgufCheckpoint
from headrace.weights.quantised import QuantisedCheckpoint

log = logging.getLogger("headrace")


def scheme_for(quant_algo: str | None, checkpoint: Checkpoint | None, round_blocks: RoundBlocks) -> Scheme:
    """``quant_algo``: as in ``QuantConfig``, or None. Raises ``ConfigError`` if the checkpoint is none for it.

    Says in the log what of a quantised folder is unpacked.
    """
    if quant_algo == "gguf":
        return _gguf(checkpoint)
    if isinstance(checkpoint, QuantisedCheckpoint):
        dense = checkpoint.unpacked() if quant_algo is None else checkpoint.unpacked() | checkpoint.kept()
        for what, count in dense.items():
            log.warning("%s: %d tensors are unpacked while they are read (%s)", checkpoint.path, count, what)
        if quant_algo is None:
            return FromFile(checkpoint)
    if quant_algo in (None, "none"):
        return NO_SCHEME
    return AtLoad(INT8 if quant_algo == "int8" else INT4, round_blocks)


def _gguf(checkpoint: Checkpoint | None) -> Scheme:
    if not isinstance(checkpoint, GgufCheckpoint) or not any(map(checkpoint.block_format, checkpoint.names())):
        raise ConfigError(
            "quant_config: quant_algo 'gguf' keeps the blocks of a GGUF file, and this model has none; set it to 'int8'"
            " or 'int4', or leave quant_config out"
        )
    return FromFile(checkpoint)
