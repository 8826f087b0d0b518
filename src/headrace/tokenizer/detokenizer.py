"""Ids to text while they are being generated."""

from __future__ import annotations

import codecs
import copy
from collections.abc import Iterable, Sequence
from typing import Protocol

from tokenizers.decoders import DecodeStream

from .tokenizer import Tokenizer


class Detokenizer:
    """Text of one output, piece by piece; a character is given when its last byte is there.

    The pieces and ``flush`` together are ``tokenizer.decode`` of all ids. ``prompt_tail``, the last ids of the prompt,
    makes the text a continuation of the prompt's: a character that the prompt began is completed, and the first space
    stays in vocabularies that drop it at the start of a text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        prompt_tail: Sequence[int] = (),
    ) -> None:
        tokenizer.check_spaces(spaces_between_special_tokens)
        make = _LibraryText if tokenizer.byte_decoding is None else _ByteText
        self._text: _Text = make(tokenizer, skip_special_tokens)
        self._text.push(prompt_tail)

    def push(self, ids: Iterable[int]) -> str:
        """New text, possibly none."""
        return self._text.push(ids)

    def flush(self) -> str:
        """The rest, when no more ids come: U+FFFD for a character that was never completed."""
        return self._text.flush()

    def fork(self) -> Detokenizer:
        """Another one, that goes on from here by itself."""
        other = copy.copy(self)
        other._text = self._text.fork()
        return other


class _Text(Protocol):
    def fork(self) -> _Text: ...

    def push(self, ids: Iterable[int]) -> str: ...

    def flush(self) -> str: ...


class _ByteText:
    """For vocabularies of bytes: an incremental UTF-8 decoder, fed with the tokens' bytes."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        assert tokenizer.byte_decoding is not None
        self._token_bytes = tokenizer.token_bytes
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip_next = tokenizer.byte_decoding.strip_first_space

    def push(self, ids: Iterable[int]) -> str:
        data = b"".join([self._token_bytes(token) for token in ids if token not in self._skipped])
        return self._stripped(self._decoder.decode(data))

    def flush(self) -> str:
        return self._stripped(self._decoder.decode(b"", final=True))

    def fork(self) -> _ByteText:
        other = copy.copy(self)
        other._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        other._decoder.setstate(self._decoder.getstate())
        return other

    def _stripped(self, text: str) -> str:
        if self._strip_next and text:
            self._strip_next = False
            return text.removeprefix(" ")
        return text


class _LibraryText:
    """For other vocabularies: the stream of the ``tokenizers`` library.

    It is not used for vocabularies of bytes because it holds back all text from the first byte on that is not UTF-8.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._stream = DecodeStream(skip_special_tokens=skip_special_tokens)
        self._ids: list[int] = []
        self._n_given = 0

    def push(self, ids: Iterable[int]) -> str:
        pieces = []
        for token in ids:
            self._ids.append(token)
            pieces.append(self._stream.step(self._tokenizer.backend, token) or "")
        text = "".join(pieces)
        self._n_given += len(text)
        return text

    def fork(self) -> _LibraryText:
        # The library's stream cannot be copied.
        other = _LibraryText(self._tokenizer, self._skip_special_tokens)
        other.push(self._ids)
        other._n_given = self._n_given
        return other

    def flush(self) -> str:
        rest = self._tokenizer.decode(self._ids, self._skip_special_tokens)[self._n_given :]
        self._n_given += len(rest)
        return rest
