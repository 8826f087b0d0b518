"""Which supported architecture an unknown configuration is most like: the one that reads most of its fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch

from headrace.core.errors import HeadraceError
from headrace.layers.base import BuildContext
from headrace.ops.table import select_ops

_SAYS_NOTHING = frozenset({
    "architectures", "attention_dropout", "auto_map", "bos_token_id", "classifier_dropout", "dtype", "embd_pdrop",
    "eos_token_id", "hidden_dropout", "initializer_range", "model_type", "name_or_path", "output_router_logits",
    "pad_token_id", "pretraining_tp", "resid_pdrop", "router_aux_loss_coef", "torch_dtype", "transformers_version",
    "use_cache",
})  # fmt: skip
"""Fields of training, of text, and of the file itself: no architecture reads them, and none needs to."""


_ENOUGH = 5
"""Fields in common below which nothing is near: every language model has a vocabulary and a width."""


class _Watched(Mapping[str, Any]):
    """A configuration that remembers which of its fields were looked at."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self.seen: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.seen.add(name)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def nearest(config: Mapping[str, Any]) -> str:
    """A sentence: the architecture, and the fields that it would not have read. Empty where none is near."""
    from .registry import ARCHITECTURES, own_class

    ctx = BuildContext(select_ops("cpu", torch.float32, "reference"))
    fields = {name for name, value in config.items() if value is not None and not name.startswith("_")} - _SAYS_NOTHING
    read: dict[str, set[str]] = {}
    for name in ARCHITECTURES:
        watched = _Watched({**config, "architectures": [name]})
        # Where something is not to its liking, it counts for what it has read until then.
        with suppress(HeadraceError):
            own_class(name)(watched, ctx)
        read[name] = watched.seen & fields
    best = max(read, key=lambda name: len(read[name]))
    if len(read[best]) < _ENOUGH:
        return ""
    missed = sorted(fields - read[best])
    unread = f"; it knows nothing of {', '.join(missed)}" if missed else ""
    return f" Nearest by its configuration is {best}{unread}."
