"""Which bytes a token stands for.

The two decoders of today's language models only concatenate: each token has its bytes, and text is their UTF-8. That
makes decoding, whole or piece by piece, exact by construction.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_SPACE_MARK = "\u2581"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class ByteDecoding:
    """How a vocabulary's token strings become bytes."""

    token_bytes: Callable[[str], bytes]
    strip_first_space: bool = False
    """One space at the very start of the text is dropped: the vocabulary writes one before every text."""


def byte_decoding(decoder: dict[str, Any] | None) -> ByteDecoding | None:
    """The decoding that the ``decoder`` of a tokenizer.json amounts to, or None if it is not one of bytes."""
    steps = _flatten(decoder)
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return ByteDecoding(_byte_level)
    if kinds[:3] == ["Replace", "ByteFallback", "Fuse"] and _is_space_mark(steps[0]):
        if not steps[3:]:
            return ByteDecoding(_byte_fallback)
        if len(steps) == 4 and _strips_first_space(steps[3]):
            return ByteDecoding(_byte_fallback, strip_first_space=True)
    return None


def _flatten(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [step for inner in decoder["decoders"] for step in _flatten(inner)]
    return [decoder]


def _is_space_mark(step: dict[str, Any]) -> bool:
    return step["pattern"] == {"String": _SPACE_MARK} and step["content"] == " "


def _strips_first_space(step: dict[str, Any]) -> bool:
    return step == {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level vocabularies write bytes as: printable Latin-1 as itself, the rest from U+0100 on
    (``bytes_to_unicode`` of GPT-2)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(shown)]
    return {chr(byte): byte for byte in shown} | {chr(0x100 + rank): byte for rank, byte in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()


def _byte_level(token: str) -> bytes:
    try:
        return bytes([_BYTE_OF[char] for char in token])
    except KeyError:
        # An added token, written as plain text.
        return token.encode()


def _byte_fallback(token: str) -> bytes:
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else token.replace(_SPACE_MARK, " ").encode()
