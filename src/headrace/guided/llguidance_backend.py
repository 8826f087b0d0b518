"""The backend on llguidance: compiles in milliseconds, and refuses what it does not enforce."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import any_to_lark

from headrace.core.errors import RequestError
from headrace.core.guided_params import GuidedDecodingParams

from .vocabulary import Vocabulary

JSON_OPTIONS = {
    "lenient": False,
    "coerce_one_of": False,
    "whitespace_flexible": True,
    # Without an end a model that likes white space would write nothing else.
    "whitespace_pattern": r"[\x20\x0A\x09]{1,24}",
}
"""Over what a schema says of itself (``x-guidance``)."""

_LIMITS = {"max_grammar_size": 200_000, "max_lexer_states": 100_000, "verbose_errors": False}


class LlguidanceCompiler:
    """See ``contract.Compiler``."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._eos_ids = vocabulary.eos_ids
        self._tokenizer = LLTokenizer(TokenizerWrapper(_Wrapped(vocabulary)), eos_token=list(vocabulary.eos_ids))
        self._limits = LLParserLimits(**_LIMITS)

    def compile(self, params: GuidedDecodingParams) -> _Grammar:
        matcher = LLMatcher(self._tokenizer, _grammar_text(params), log_level=0, limits=self._limits)
        if matcher.is_error():
            raise RequestError(f"guided_decoding.{params.kind}: {matcher.get_error().strip()}", param=params.kind)
        return _Grammar(matcher, self._eos_ids)


class _Grammar:
    """See ``contract.Grammar``."""

    def __init__(self, start: LLMatcher, eos_ids: Sequence[int]) -> None:
        self._start = start
        self._eos_ids = eos_ids

    def matcher(self) -> _Matcher:
        return _Matcher(self._start.deep_copy(), self._eos_ids)


class _Matcher:
    """See ``contract.Matcher``."""

    def __init__(self, matcher: LLMatcher, eos_ids: Sequence[int]) -> None:
        self._matcher = matcher
        self._eos_ids = eos_ids

    def consume(self, token: int) -> bool:
        if token in self._eos_ids:
            return False
        taken = self._matcher.try_consume_tokens([token]) == 1
        self._check()
        return taken

    def rollback(self, n_tokens: int) -> None:
        if n_tokens:
            self._matcher.rollback(n_tokens)
            self._check()

    def fill(self, words: np.ndarray) -> bool:
        may_end = self._matcher.is_accepting()
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        self._check()
        for token in self._eos_ids:
            words[token // 32] &= ~np.uint32(1 << (token % 32))
        return may_end

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RequestError(f"guided_decoding: {self._matcher.get_error().strip()}", param="guided_decoding")


class _Wrapped:
    """A vocabulary as llguidance asks for it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id = vocabulary.eos_ids[0]
        self.bos_token_id = vocabulary.tokenizer.bos_id
        self.tokens = list(vocabulary.tokens)
        self.special_token_ids = sorted(vocabulary.special_ids)
        self._encode = vocabulary.tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text, add_special_tokens=False)


def _grammar_text(params: GuidedDecodingParams) -> str:
    """In llguidance's own form. Raises ``RequestError``."""
    if params.json is not None:
        _check_ids(json.loads(params.json))
        return LLMatcher.grammar_from_json_schema(params.json, overrides=JSON_OPTIONS)
    if params.json_object:
        return LLMatcher.grammar_from_json_schema('{"type": "object"}', overrides=JSON_OPTIONS)
    if params.regex is not None:
        return LLMatcher.grammar_from_regex(params.regex)
    if params.choice is not None:
        texts = " | ".join(json.dumps(text, ensure_ascii=False) for text in params.choice)
        return LLMatcher.grammar_from_lark(f"start: {texts}")
    if params.grammar is not None:
        return LLMatcher.grammar_from_lark(_lark(params.grammar))
    raise RequestError(
        "guided_decoding.structural_tag: llguidance does not read it; set guided_decoding_backend='xgrammar'",
        param="structural_tag",
    )


def _check_ids(value: Any) -> None:
    """``$id`` beside ``$ref`` means one thing up to draft 7 and another since; llguidance knows the later one."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str) and isinstance(value.get("$id"), str):
            raise RequestError("guided_decoding.json: $id beside $ref depends on the draft; leave it out", param="json")
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            _check_ids(inner)


def _lark(text: str) -> str:
    try:
        return any_to_lark(text)
    except Exception as error:  # noqa: BLE001  the converter raises whatever it stumbles over
        raise RequestError(f"guided_decoding.grammar: {error or type(error).__name__}", param="grammar") from None
