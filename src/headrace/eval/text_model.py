"""A model over pieces of text, without an engine: the logits after each token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from headrace.cache.groups import group_layers
from headrace.core.errors import ConfigError
from headrace.core.plan import BLOCK_TOKENS
from headrace.layers.base import BuildContext
from headrace.models.eagle3 import tapped_layers
from headrace.models.registry import build_model
from headrace.models.taps import Taps, n_layers, tap_layers
from headrace.ops.batch import Batch, GroupBatch
from headrace.ops.blocks import CACHE_DTYPES, block_layout
from headrace.ops.table import select_ops
from headrace.runner.scheme import scheme_for
from headrace.weights.checkpoint import open_checkpoint

_ROWS = 64
"""Rows whose logits are made at a time."""


CACHES = ("auto", *CACHE_DTYPES)
"""What the cache of a mode can be in, by name; auto: as its activations."""


@dataclass(frozen=True, slots=True)
class Mode:
    """How weights, keys and values are kept, and what products are computed in."""

    name: str
    dtype: torch.dtype
    quant_algo: str | None
    """As in ``QuantConfig``."""
    kv_dtype: torch.dtype | None = None
    """None: ``dtype``."""

    def with_cache(self, name: str) -> Mode:
        """The same over a cache in one of ``CACHES``."""
        if name == "auto":
            return self
        return replace(self, name=f"{self.name}, cache in {name}", kv_dtype=CACHE_DTYPES[name])


MODES = {
    "float32": Mode("float32", torch.float32, "none"),
    "bfloat16": Mode("bfloat16", torch.bfloat16, "none"),
    "int8": Mode("int8", torch.float32, "int8"),
    "int4": Mode("int4", torch.float32, "int4"),
    "gguf": Mode("gguf", torch.float32, "gguf"),
    "stored": Mode("stored", torch.float32, None),
    "int8-bfloat16": Mode("int8-bfloat16", torch.bfloat16, "int8"),
    "int4-bfloat16": Mode("int4-bfloat16", torch.bfloat16, "int4"),
    "gguf-bfloat16": Mode("gguf-bfloat16", torch.bfloat16, "gguf"),
    "stored-bfloat16": Mode("stored-bfloat16", torch.bfloat16, None),
}
"""By name: a dtype, or a ``quant_algo`` with activations in fp32 or in bfloat16."""


class TextModel:
    """Loads the model at once. Raises what building a model raises.

    Args:
        n_tokens: of the longest piece.
    """

    def __init__(self, path: Path, mode: Mode, n_tokens: int) -> None:
        checkpoint = open_checkpoint(path)
        try:
            kv_dtype = mode.kv_dtype or mode.dtype
            self._ops = select_ops("cpu", mode.dtype, kv_dtype=kv_dtype)
            scheme = scheme_for(mode.quant_algo, checkpoint, self._ops.round_blocks)
            ctx = BuildContext(self._ops, mode.dtype, max_seq_len=n_tokens, kv_dtype=kv_dtype, scheme=scheme)
            self._model = build_model(checkpoint.config(), ctx)
            if n_tokens > self._model.max_positions:
                raise ConfigError(
                    f"pieces of {n_tokens} tokens are beyond the {self._model.max_positions} positions of the model"
                )
            self._model.load(checkpoint)
        finally:
            checkpoint.close()
        self.n_bytes = self._model.n_bytes
        self.dtype = mode.dtype
        self._groups = group_layers(self._model.cache_specs())
        self._columns = -(-n_tokens // BLOCK_TOKENS)
        views = []
        for group in self._groups:
            numbers, dtype = block_layout(group.spec, kv_dtype)
            views.append(torch.zeros(1 + self._columns, len(group.layers), numbers, dtype=dtype))
        self._model.bind_cache([group.layers for group in self._groups], views)

    def logprobs(self, tokens: Sequence[int]) -> Iterator[torch.Tensor]:
        """[<= 64, vocab_size] fp32 at a time: log probabilities after each token."""
        yield from (logits.log_softmax(-1) for logits in self.logits(tokens))

    def logits(self, tokens: Sequence[int]) -> Iterator[torch.Tensor]:
        """The same before the softmax."""
        hidden = self.hidden(tokens)
        for first in range(0, len(tokens), _ROWS):
            yield self.head(hidden[first : first + _ROWS])

    def hidden(self, tokens: Sequence[int]) -> torch.Tensor:
        """[S, hidden]: what ``head`` reads after each token."""
        with torch.inference_mode():
            return self._model.forward(self._batch(tokens))

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """[R, hidden] -> [R, vocab_size] fp32."""
        with torch.inference_mode():
            return self._model.logits(hidden)

    def tap(self) -> Taps:
        """From here on, the states of the three layers that draft heads read by default. Raises ``ConfigError`` for a
        model with too few layers."""
        return tap_layers(self._model, self.usual_layers(), "the usual layers")

    def usual_layers(self) -> list[int]:
        """Which those are, from 0 on."""
        return tapped_layers({}, n_layers(self._model), None, "auto")

    @property
    def hidden_size(self) -> int:
        """Values of what ``head`` reads."""
        return self._model.pooling.width

    def _batch(self, tokens: Sequence[int]) -> Batch:
        n = len(tokens)
        table = torch.arange(1, 1 + self._columns, dtype=torch.int32).unsqueeze(0)
        places = torch.arange(n) + BLOCK_TOKENS
        batch = Batch(
            input_ids=torch.tensor(tokens),
            positions=torch.arange(n),
            query_starts=torch.tensor([0, n]),
            seq_lens=torch.tensor([n]),
            groups=tuple(GroupBatch(table.clone(), places) for _ in self._groups),
        )
        for index, group in enumerate(self._groups):
            batch.groups[index].metadata = self._ops.plan(batch, index, group.spec)
        return batch
