"""What a processor of media promises. A model that reads media has one; ``find`` knows which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from headrace.core.errors import RequestError
from headrace.core.media import MediaData, MediaItem


class MediaProcessor(Protocol):
    """Runs beside the engine, in the process that takes requests in, on any thread."""

    kinds: tuple[str, ...]
    """What it takes: keys of ``multi_modal_data``."""
    placeholders: Mapping[str, int]
    """By kind, the token that stands for an item in a prompt. It may lie beyond the vocabulary of the head."""

    def __call__(self, ids: tuple[int, ...], data: MediaData) -> tuple[tuple[int, ...], tuple[MediaItem, ...]]:
        """The prompt with as many placeholders as each item takes, and the items as the encoder reads them.

        Raises ``RequestError`` for what is no such item, and if the prompt has not a place for each.
        """
        ...


def items_of(data: MediaData, kinds: Sequence[str]) -> dict[str, list[Any]]:
    """The items by kind, all kinds there. Raises ``RequestError`` for another kind."""
    for kind in data:
        if kind not in kinds:
            raise RequestError(
                f"multi_modal_data has {kind!r}; this model takes {', '.join(kinds)}", param="multi_modal_data"
            )
    return {kind: _listed(data.get(kind)) for kind in kinds}


def places_of(ids: Sequence[int], placeholder: int, kind: str, n_items: int) -> list[int]:
    """Positions of the placeholders in a prompt. Raises ``RequestError`` unless there are ``n_items``."""
    places = [position for position, token in enumerate(ids) if token == placeholder]
    if len(places) != n_items:
        raise RequestError(
            f"the prompt has {len(places)} places for media of kind {kind!r} (token id {placeholder}), and {n_items}"
            " were given; write one into the prompt for each, or let a chat template do it",
            param="multi_modal_data",
        )
    return places


def _listed(given: Any) -> list[Any]:
    if given is None:
        return []
    return list(given) if isinstance(given, (list, tuple)) else [given]
