"""Which scheme of weights a setting stands for."""

from __future__ import annotations

from headrace.core.errors import ConfigError
from headrace.quant.formats import INT4, INT8
from headrace.quant.schemes import NO_SCHEME, AtLoad, FromFile, Scheme
from headrace.weights.checkpoint import Checkpoint
from headrace.weights.gguf import GgufCheckpoint


def scheme_for(quant_algo: str | None, checkpoint: Checkpoint | None) -> Scheme:
    """``quant_algo``: as in ``QuantConfig``, or None. Raises ``ConfigError`` if the checkpoint is none for it."""
    if quant_algo is None:
        return NO_SCHEME
    if quant_algo != "gguf":
        return AtLoad(INT8 if quant_algo == "int8" else INT4)
    if not isinstance(checkpoint, GgufCheckpoint) or not any(map(checkpoint.block_format, checkpoint.names())):
        raise ConfigError(
            "quant_config: quant_algo 'gguf' keeps the blocks of a GGUF file, and this model has none; set it to 'int8'"
            " or 'int4', or leave quant_config out"
        )
    return FromFile(checkpoint)
