"""Chunks of a stream, as bytes: what never changes in a request is encoded once, and only the delta is spliced in."""

from __future__ import annotations

from typing import Any

import msgspec

encode = msgspec.json.encode


class ChunkWriter:
    """The chunks of one request. ``before`` and ``after`` are what encloses the text in a choice: the text's place is
    the only difference between the two APIs."""

    def __init__(self, envelope: dict[str, Any], before: bytes, after: bytes, *, with_usage: bool) -> None:
        """``envelope``: id, object, created, model. ``with_usage``: a last chunk will carry it, the others null."""
        self._envelope = encode(envelope)[:-1]
        self._before = before
        self._after = after
        self._tail = b'}],"usage":null}\n\n' if with_usage else b"}]}\n\n"
        self._heads: dict[int, bytes] = {}

    def text(self, index: int, text: str, logprobs: dict[str, Any] | None = None, finish: bytes = b"null") -> bytes:
        """A chunk of new text. ``finish``: the JSON of finish_reason, with what may follow it."""
        return b"".join(
            (
                self._head(index),
                self._before,
                encode(text),
                self._after,
                b',"logprobs":',
                b"null" if logprobs is None else encode(logprobs),
                b',"finish_reason":',
                finish,
                self._tail,
            )
        )

    def choice(self, index: int, fields: bytes) -> bytes:
        """A chunk with a choice of other fields."""
        return self._head(index) + fields + self._tail

    def usage_so_far(self, usage: dict[str, Any]) -> None:
        """The chunks from here on carry it."""
        self._tail = b'}],"usage":' + encode(usage) + b"}\n\n"

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The chunk before the end: no choice, only the usage."""
        return b"data: " + self._envelope + b',"choices":[],"usage":' + encode(usage) + b"}\n\n"

    def _head(self, index: int) -> bytes:
        head = self._heads.get(index)
        if head is None:
            head = b"data: " + self._envelope + b',"choices":[{"index":%d,' % index
            self._heads[index] = head
        return head


def finish_json(reason: str, stop_reason: int | str | None) -> bytes:
    """``finish_reason`` and, beyond OpenAI, ``stop_reason``: the stop text or stop id that ended it."""
    reason, stop_reason = finish_words(reason, stop_reason)
    return encode(reason) + b',"stop_reason":' + encode(stop_reason)


def finish_words(reason: str, stop_reason: int | str | None) -> tuple[str, int | str | None]:
    """The API has no word for a deadline: its clients get "length" and find "timeout" in stop_reason."""
    return ("length", "timeout") if reason == "timeout" else (reason, stop_reason)
