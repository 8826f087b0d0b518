"""What grammars need to know of a vocabulary: the bytes of every token."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.core.errors import RequestError
from headrace.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of a model, as many as it has logits."""

    tokens: tuple[bytes, ...]
    """Empty for ids without a token, and for special tokens: those are never part of a text."""
    special_ids: frozenset[int]
    eos_ids: tuple[int, ...]
    """Rising, at least one."""
    tokenizer: Tokenizer


def vocabulary_of(tokenizer: Tokenizer | None, vocab_size: int, eos_ids: frozenset[int]) -> Vocabulary:
    """Raises ``RequestError`` where there is no text, or no bytes to it."""
    if tokenizer is None:
        raise RequestError("guided_decoding needs a tokenizer; leave skip_tokenizer_init off", param="guided_decoding")
    if tokenizer.byte_decoding is None:
        raise RequestError(
            "guided_decoding needs a vocabulary whose tokens are bytes, and this model's is not",
            param="guided_decoding",
        )
    ends = tuple(sorted(token for token in eos_ids | tokenizer.eos_ids if token < vocab_size))
    if not ends:
        raise RequestError("guided_decoding needs an end token, and the model has none", param="guided_decoding")
    special = tokenizer.special_ids | frozenset(ends)
    tokens = tuple(b"" if token in special else tokenizer.token_bytes(token) for token in range(vocab_size))
    return Vocabulary(tokens, frozenset(token for token in special if token < vocab_size), ends, tokenizer)
