"""The tokenizer of a folder in the metadata of a GGUF file (``tokenizer.ggml.*``)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from headrace.core.errors import CheckpointError, ConfigError
from headrace.tokenizer.gguf import PRE_TOKENIZERS, TokenType, tokenizer_from_gguf
from headrace.tokenizer.load import load_tokenizer
from headrace.tokenizer.tokenizer import Tokenizer

U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
"""Types of GGUF metadata."""
Field = tuple[Any, int, Any]
"""Value, type, type of an array's entries."""

_PROBE = (
    "Hello, world!  It's 2024: 3.14159 and 1234567 apples; don't WE'LL stop?\n\n\tdef f(x):\r\n    return x**2  # ok"
    " HTTPServer camelCase snake_case naïve Ünïcödé Straße ἀρχή Привет 你好世界 こんにちは 🙂👍🏽 é e\u0301"
    " \u00a0 a/b//c ...\n\n   trailing   "
)
"""Cut differently by every pre-tokenizer that GGUF names, as far as they are read here."""


def tokenizer_fields(folder: Path, vocab_size: int) -> dict[str, Field]:
    """``vocab_size``: rows of the embedding. Raises ``ConfigError`` for a tokenizer that GGUF has no words for: the
    metadata are read back, and a text is cut with them."""
    tokenizer = load_tokenizer(folder)
    common = _common(tokenizer, vocab_size)
    wanted = tokenizer.encode(_PROBE)
    tried, found = [], []
    for kind in _kinds(tokenizer):
        values = common | kind
        try:
            read = tokenizer_from_gguf(_plain(values), folder)
        except CheckpointError as error:
            tried.append(str(error))
            continue
        if read.encode(_PROBE) == wanted and read.eos_ids >= tokenizer.eos_ids:
            found.append((_split(read) != _split(tokenizer), values))
    if found:
        # A vocabulary may give the same tokens under several names: the one that splits in the same words goes first.
        values = min(found, key=lambda entry: entry[0])[1]
        return {f"tokenizer.ggml.{key}": field for key, field in values.items()} | _templates(tokenizer)
    why = f" ({tried[0]})" if tried else ""
    raise ConfigError(
        f"{folder}: the tokenizer is none that is written as GGUF{why}: its text is cut unlike all of"
        f" {', '.join(PRE_TOKENIZERS)}, and unlike sentencepiece"
    )


def _split(tokenizer: Tokenizer) -> Any:
    """How text is cut before merging, as the library writes it down."""
    return json.loads(tokenizer.backend.to_str())["pre_tokenizer"]


def _plain(values: Mapping[str, Field]) -> dict[str, Any]:
    """As a reader gives them: numbers of an array as numpy has them."""
    kinds = {I32: np.int32, F32: np.float32}
    return {
        f"tokenizer.ggml.{key}": np.array(value, kinds[of]) if of in kinds else value
        for key, (value, _, of) in values.items()
    }


def _kinds(tokenizer: Tokenizer) -> Iterator[dict[str, Field]]:
    """What may be the vocabulary's kind."""
    backend = json.loads(tokenizer.backend.to_str())
    model = backend["model"]
    if model.get("type") != "BPE":
        return
    merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
    if not model.get("byte_fallback"):
        joined = [" ".join(merge) for merge in merges]
        for name in PRE_TOKENIZERS:
            if name == "default":
                # For files that do not say; llama.cpp has a rule of its own for it.
                continue
            yield {
                "model": ("gpt2", STRING, None),
                "pre": (name, STRING, None),
                "merges": (joined, ARRAY, STRING),
            }
        return
    rank: dict[str, int] = {}
    for number, (left, right) in enumerate(merges):
        rank.setdefault(left + right, number)
    size = tokenizer.vocab_size
    scores = [-float(rank.get(tokenizer.id_to_token(token) or "", 0)) for token in range(size)]
    for prefix in (False, True):
        yield {
            "model": ("llama", STRING, None),
            "add_space_prefix": (prefix, BOOL, None),
            "scores": (scores, ARRAY, F32),
        }


def _common(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Field]:
    added: Mapping[int, tokenizers.AddedToken] = tokenizer.backend.get_added_tokens_decoder()
    tokens, types = [], []
    for number in range(vocab_size):
        token = tokenizer.id_to_token(number)
        tokens.append(f"[PAD{number}]" if token is None else token)
        types.append(int(_type(token, added.get(number))))
    empty = tokenizer.encode("")
    roles = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {role: tokenizer.token_to_id(text) for role, text in tokenizer.special_tokens.items() if role in roles}
    others = sorted(tokenizer.eos_ids - {ids.get("eos_token")})
    fields: dict[str, Field] = {
        "tokens": (tokens, ARRAY, STRING),
        "token_type": (types, ARRAY, I32),
        "add_bos_token": (bool(empty) and empty[0] == tokenizer.bos_id, BOOL, None),
        "add_eos_token": (bool(empty) and empty[-1] in tokenizer.eos_ids and len(empty) > 1, BOOL, None),
    }
    fields |= {f"{roles[role]}_token_id": (number, U32, None) for role, number in ids.items() if number is not None}
    fields |= {f"{kind}_token_id": (number, U32, None) for kind, number in zip(("eot", "eom"), others, strict=False)}
    return fields


def _type(token: str | None, added: tokenizers.AddedToken | None) -> TokenType:
    if token is None:
        return TokenType.UNUSED
    if added is not None:
        if token == "<unk>":
            return TokenType.UNKNOWN
        return TokenType.CONTROL if added.special else TokenType.USER_DEFINED
    is_byte = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
    return TokenType.BYTE if is_byte else TokenType.NORMAL


def _templates(tokenizer: Tokenizer) -> dict[str, Field]:
    key = "tokenizer.chat_template"
    return {
        key if name == "default" else f"{key}.{name}": (text, STRING, None)
        for name, text in tokenizer.chat_templates.items()
    }
