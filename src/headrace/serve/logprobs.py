"""Logprobs in the two shapes of the OpenAI API."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.core.outputs import Logprob
from headrace.engine.results import RequestOutput
from headrace.tokenizer.tokenizer import Tokenizer

FLOOR = -9999.0
"""What OpenAI writes where a logprob is minus infinity: JSON has no infinities."""

Entry = Mapping[int, Logprob]


class TokenTexts:
    """How single tokens are written."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer

    def data(self, token: int) -> bytes:
        """The token's bytes; without a tokenizer its number."""
        tokenizer = self._tokenizer
        if tokenizer is None:
            return f"token_id:{token}".encode()
        if tokenizer.byte_decoding is None:
            return tokenizer.decode([token], skip_special_tokens=False).encode()
        return tokenizer.token_bytes(token)

    def text(self, token: int) -> str:
        """A token that is no whole character is written ``bytes:\\xe2\\x82``, so that no two look alike."""
        data = self.data(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _number(one: Logprob) -> float:
    return max(one.logprob, FLOOR)


def _top(entry: Entry, k: int) -> list[tuple[int, Logprob]]:
    """The k most likely, without a token that is there only because it was drawn."""
    return sorted(((token, one) for token, one in entry.items() if one.rank <= k), key=lambda pair: pair[1].rank)


class CompletionLogprobs:
    """``logprobs`` of a choice of /v1/completions; remembers where in the text the next token begins."""

    def __init__(self, texts: TokenTexts, k: int) -> None:
        self._texts = texts
        self._k = k
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def rows(self, tokens: Sequence[int], entries: Sequence[Entry | None]) -> dict[str, list[Any]]:
        """``text_offset`` counts characters from the start of the choice's text. An entry of None: the very first
        token, which nothing comes before."""
        rows: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token, entry in zip(tokens, entries, strict=True):
            rows["tokens"].append(self._texts.text(token))
            rows["token_logprobs"].append(None if entry is None else _number(entry[token]))
            rows["top_logprobs"].append(None if entry is None else self._row(token, entry))
            rows["text_offset"].append(self._offset)
            self._offset += len(self._decoder.decode(self._texts.data(token)))
        return rows

    def _row(self, token: int, entry: Entry) -> dict[str, float]:
        """The k most likely, and the token that is there."""
        row = {self._texts.text(one): _number(logprob) for one, logprob in _top(entry, self._k)}
        row[self._texts.text(token)] = _number(entry[token])
        return row


def chat_logprobs(texts: TokenTexts, k: int, tokens: Sequence[int], entries: Sequence[Entry]) -> dict[str, Any]:
    """``logprobs`` of a choice of /v1/chat/completions."""

    def one(token: int, logprob: Logprob) -> dict[str, Any]:
        return {"token": texts.text(token), "logprob": _number(logprob), "bytes": list(texts.data(token))}

    content = [
        one(token, entry[token]) | {"top_logprobs": [one(*pair) for pair in _top(entry, k)]}
        for token, entry in zip(tokens, entries, strict=True)
    ]
    return {"content": content, "refusal": None}


def prompt_logprobs(texts: TokenTexts, k: int, output: RequestOutput) -> list[dict[str, Any] | None]:
    """``prompt_logprobs`` of a choice: for each prompt token, by token id, the token itself and the k most likely.

    The first is None: nothing comes before it.
    """

    def row(token: int, entry: Entry) -> dict[str, Any]:
        shown = dict([*_top(entry, k), (token, entry[token])])
        return {
            str(one): {"logprob": _number(logprob), "rank": logprob.rank, "decoded_token": texts.text(one)}
            for one, logprob in shown.items()
        }

    # All outputs have the same prompt; the first one brings its entries. A prompt of one token has none.
    entries = output.outputs[0].prompt_logprobs or [None]
    pairs = zip(output.prompt_token_ids, entries, strict=True)
    return [None if entry is None else row(token, entry) for token, entry in pairs]
