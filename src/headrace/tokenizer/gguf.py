"""The tokenizer in the metadata of a GGUF file (``tokenizer.ggml.*``).

Keys: docs/gguf.md of the ggml project. Token types, defaults, names of pre-tokenizers: ``src/llama-vocab.cpp``
of llama.cpp (https://github.com/ggml-org/llama.cpp); how a text is split under each name is what the models' own
``tokenizer.json`` says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from headrace.core.errors import CheckpointError

from .post import bos_eos_processor
from .tokenizer import Tokenizer

_SPACE_MARK = "\u2581"

_END_TOKENS = frozenset(
    ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<end_of_turn>", "<EOT>")
)
"""Control tokens that end a turn or a text whatever the metadata says; files often name one of several only."""


class TokenType(IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class _Split:
    """How byte-level vocabularies cut a text before merging."""

    pre_tokenizer: Callable[[], pre_tokenizers.PreTokenizer]
    normalizer: Callable[[], normalizers.Normalizer] | None = None
    ignore_merges: bool = False
    """A piece that is a token as a whole is not merged step by step."""
    add_bos: bool = False
    """Where the metadata does not say."""


def _gpt2_split() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _digits_split() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2_split()])


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BEFORE_WORD = r"[^\r\n\p{L}\p{N}]?"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _word_split(digits: str) -> Callable[[], pre_tokenizers.PreTokenizer]:
    """Contractions, words, runs of ``digits``, punctuation, white space."""
    words = rf"{_CONTRACTIONS}|{_BEFORE_WORD}\p{{L}}+"
    return _pattern_split(rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}")


def _cased_word_split(digits: str, ending: str = "") -> Callable[[], pre_tokenizers.PreTokenizer]:
    """As ``_word_split``, but a word ends where a capital follows a small letter, and ``ending`` belongs to it."""
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    words = f"{_BEFORE_WORD}{upper}*{lower}+{ending}|{_BEFORE_WORD}{upper}+{lower}*{ending}"
    return _pattern_split(rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}")


def _pattern_split(pattern: str) -> Callable[[], pre_tokenizers.PreTokenizer]:
    return lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


_LLAMA3 = _Split(_word_split(r"\p{N}{1,3}"), ignore_merges=True, add_bos=True)
_QWEN2 = _Split(_word_split(r"\p{N}"), normalizer=normalizers.NFC)
_GPT2 = _Split(_gpt2_split)
_TEKKEN = _Split(_cased_word_split(r"\p{N}"), ignore_merges=True, add_bos=True)
_GPT4O = _Split(_cased_word_split(r"\p{N}{1,3}", f"{_CONTRACTIONS}?"))

_SPLITS = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "smollm": _Split(_digits_split),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "dbrx": _Split(_word_split(r"\p{N}{1,3}")),
    "tekken": _TEKKEN,
    "gpt-4o": _GPT4O,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}

PRE_TOKENIZERS = tuple(_SPLITS)
"""Names that ``tokenizer.ggml.pre`` may have."""


def tokenizer_from_gguf(metadata: Mapping[str, Any], path: Path) -> Tokenizer:
    """Build the tokenizer (``path`` is for messages). Raises ``CheckpointError`` if it is missing, damaged, or of a
    kind that is not supported."""
    fields = _Fields(metadata, path)
    kind = fields.text("model")
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in builders:
        raise fields.error(f"tokenizer model {kind!r} is not supported; supported: {', '.join(builders)}")
    backend, add_bos = builders[kind](fields)
    special = fields.special_tokens()
    processor = bos_eos_processor(
        backend,
        special.get("bos_token") if fields.flag("add_bos_token", add_bos) else None,
        special.get("eos_token") if fields.flag("add_eos_token", False) else None,
    )
    if processor is not None:
        backend.post_processor = processor
    return Tokenizer(
        backend, eos_ids=fields.end_ids(), special_tokens=special, chat_templates=_chat_templates(metadata)
    )


class _Fields:
    """Checked access to ``tokenizer.ggml.*``."""

    def __init__(self, metadata: Mapping[str, Any], path: Path) -> None:
        self._metadata = metadata
        self._path = path
        self.tokens: list[str] = self.strings("tokens")
        self.ids = {token: token_id for token_id, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            twice = next(token for token_id, token in enumerate(self.tokens) if self.ids[token] != token_id)
            raise self.error(f"token {twice!r} is in the vocabulary twice")
        self.types: Sequence[int] = self._numbers("token_type", "iu", TokenType.NORMAL)

    def error(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: {message}")

    def text(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, "text", value)
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false", value)
        return value

    def strings(self, key: str) -> list[str]:
        value = self._get(key, None)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(key, "an array of texts", value)
        return value

    def scores(self) -> Sequence[float]:
        return self._numbers("scores", "f", None)

    def special_tokens(self) -> dict[str, str]:
        """Role to text, as tokenizer_config.json names the roles."""
        roles = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
        found = {role: self._token_id(kind) for kind, role in roles.items()}
        return {role: self.tokens[token_id] for role, token_id in found.items() if token_id is not None}

    def end_ids(self) -> set[int]:
        """Declared ends of sequence, turn and message, and control tokens that are known ends by name."""
        declared = {self._token_id(kind) for kind in ("eos", "eot", "eom")} - {None}
        named = {self.ids[token] for token in _END_TOKENS if token in self.ids}
        return declared | {token_id for token_id in named if self.types[token_id] == TokenType.CONTROL}

    def _numbers(self, key: str, kinds: str, default: int | None) -> list[Any]:
        """One number a token."""
        value = self._get(key, None)
        if value is None and default is not None:
            return [default] * len(self.tokens)
        if getattr(value, "dtype", None) is None or value.dtype.kind not in kinds or len(value) != len(self.tokens):
            raise self._wrong(key, f"an array of {len(self.tokens)} numbers, one a token", value)
        return value.tolist()

    def _token_id(self, kind: str) -> int | None:
        key = f"{kind}_token_id"
        value = self._get(key, None)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(self.tokens):
            raise self._wrong(key, f"an id below {len(self.tokens)}", value)
        return value

    def _get(self, key: str, default: Any) -> Any:
        return self._metadata.get(f"tokenizer.ggml.{key}", default)

    def _wrong(self, key: str, expected: str, value: Any) -> CheckpointError:
        found = "it is missing" if value is None else f"found {value!r:.60}"
        return self.error(f"metadata 'tokenizer.ggml.{key}': expected {expected}, {found}")


def _byte_level(fields: _Fields) -> tuple[tokenizers.Tokenizer, bool]:
    """Byte-level BPE (GPT-2's kind), and whether a begin token is added by default."""
    name = fields.text("pre", "default")
    if name not in _SPLITS:
        raise fields.error(f"pre-tokenizer {name!r} is not supported; supported: {', '.join(_SPLITS)}")
    split = _SPLITS[name]
    merges = [tuple(merge.split(" ", 1)) for merge in fields.strings("merges")]
    backend = tokenizers.Tokenizer(_bpe(fields, merges, ignore_merges=split.ignore_merges))
    if split.normalizer is not None:
        backend.normalizer = split.normalizer()
    backend.pre_tokenizer = split.pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    _add_tokens(backend, fields)
    return backend, split.add_bos


def _sentencepiece(fields: _Fields) -> tuple[tokenizers.Tokenizer, bool]:
    """Sentencepiece BPE with byte fallback (Llama 2's and Gemma's kind)."""
    unknown = next(
        (token for token, kind in zip(fields.tokens, fields.types, strict=True) if kind == TokenType.UNKNOWN), None
    )
    model = _bpe(fields, _merges_by_score(fields), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    prefix = fields.flag("add_space_prefix", True)
    steps = [normalizers.Prepend(_SPACE_MARK)] if prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE_MARK)])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    _add_tokens(backend, fields)
    return backend, True


def _bpe(fields: _Fields, merges: list[tuple[str, ...]], **options: Any) -> models.BPE:
    try:
        return models.BPE(vocab=fields.ids, merges=merges, **options)
    except Exception as error:  # The library raises bare Exception: a merge of absent tokens
        raise fields.error(f"damaged vocabulary: {error}") from error


def _merges_by_score(fields: _Fields) -> list[tuple[str, ...]]:
    """The merges that sentencepiece makes: any two neighbours whose concatenation is a piece, best score first."""
    find = fields.ids.get
    found = []
    for piece, score, kind in zip(fields.tokens, fields.scores(), fields.types, strict=True):
        if kind not in (TokenType.NORMAL, TokenType.USER_DEFINED):
            continue
        for cut in range(1, len(piece)):
            # Gemma has 262,144 pieces and two million cuts: look for the second half only when there is a first.
            left = find(piece[:cut])
            if left is not None and (right := find(piece[cut:])) is not None:
                found.append((-score, left, right))
    found.sort()
    tokens = fields.tokens
    return [(tokens[left], tokens[right]) for _, left, right in found]


def _add_tokens(backend: tokenizers.Tokenizer, fields: _Fields) -> None:
    """Tokens that are found in a text before it is split: control tokens (special) and user-defined ones."""
    added = []
    for token, kind in zip(fields.tokens, fields.types, strict=True):
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED) and token:
            added.append(AddedToken(token, normalized=False, special=kind != TokenType.USER_DEFINED))
    backend.add_tokens(added)


def _chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    key = "tokenizer.chat_template"
    templates = {name.removeprefix(f"{key}."): text for name, text in metadata.items() if name.startswith(f"{key}.")}
    if key in metadata:
        templates["default"] = metadata[key]
    return {name: text for name, text in templates.items() if isinstance(text, str)}
