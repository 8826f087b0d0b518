"""Media in a prompt: what a processor made of an image, ready for the model's encoder, and where it stands."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

_ID_BYTES = 7
"""Of a digest in the name of a placeholder: block keys hold 64-bit integers."""


MediaData = Mapping[str, Any]
"""TensorRT-LLM's ``multi_modal_data``: by kind, an item or a list of them, in the order of their places."""


class MediaTensor(msgspec.Struct, frozen=True):
    """An array as it travels."""

    dtype: str
    """A name of numpy's."""
    shape: tuple[int, ...]
    data: bytes
    """Little-endian, in C order."""


class MediaItem(msgspec.Struct, frozen=True):
    """One image of a prompt."""

    kind: str
    """What it is; image."""
    digest: bytes
    """Of all that the encoder reads: equal digests are equal media."""
    first: int
    """Position of its first placeholder."""
    n_tokens: int
    """Placeholders, one behind another."""
    n_states: int
    """Vectors that the encoder makes of it."""
    tensors: dict[str, MediaTensor]

    @property
    def end(self) -> int:
        return self.first + self.n_tokens


def digest_of(kind: str, tensors: dict[str, MediaTensor]) -> bytes:
    """BLAKE2b over the kind and all tensors: 32 bytes."""
    return hashlib.blake2b(msgspec.msgpack.encode((kind, sorted(tensors.items()))), digest_size=32).digest()


def cache_keys(tokens: Sequence[int], media: Sequence[MediaItem]) -> list[int]:
    """The tokens as the prefix index compares them: a placeholder goes by the content of its item and its place in it,
    as a number below zero, so that it equals no token."""
    keys = list(tokens)
    for item in media:
        for place in range(item.n_tokens):
            digest = hashlib.blake2b(item.digest + place.to_bytes(8, "little"), digest_size=_ID_BYTES).digest()
            keys[item.first + place] = -1 - int.from_bytes(digest, "little")
    return keys


@dataclass(frozen=True)
class EncodedMedia:
    """The media of a prompt as one thing that is encoded, kept and shared as a whole."""

    items: tuple[MediaItem, ...]

    @cached_property
    def key(self) -> bytes:
        """Equal for equal media in equal order."""
        return hashlib.blake2b(b"".join(item.digest for item in self.items), digest_size=32).digest()

    @cached_property
    def n_keys(self) -> int:
        """Vectors of all items, one item's behind another's."""
        return sum(item.n_states for item in self.items)


def seen_from(media: Sequence[MediaItem]) -> list[tuple[int, int, int]]:
    """(position, first, end): rows from that position on see vectors [first, end) of the media, until the next entry.

    A row sees the last item that stands at or before it, and with it the items whose placeholders stand right before
    that one's. Rows before the first entry see none (the mask of Llama 3.2 Vision).
    """
    seen: list[tuple[int, int, int]] = []
    first = end = 0
    before: MediaItem | None = None
    for item in media:
        if before is None or before.end != item.first:
            first = end
        end += item.n_states
        seen.append((item.first, first, end))
        before = item
    return seen
