"""The backend on xgrammar: structural tags, and masks that are filled faster; what it would not enforce is refused."""

from __future__ import annotations

import json
import threading

import numpy as np
import xgrammar

from headrace.core.errors import RequestError
from headrace.core.guided_params import GuidedDecodingParams

from .schema_keywords import check_schema, check_tag
from .vocabulary import Vocabulary

_MOST_WHITE_SPACE = 24
_CACHE_BYTES = 256 << 20


class XgrammarCompiler:
    """See ``contract.Compiler``."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        info = xgrammar.TokenizerInfo(
            list(vocabulary.tokens), vocab_size=len(vocabulary.tokens), stop_token_ids=list(vocabulary.eos_ids)
        )
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_limit_bytes=_CACHE_BYTES)
        self._one_at_a_time = threading.Lock()
        bits = np.zeros(-(-len(vocabulary.tokens) // 32) * 32, bool)
        bits[: len(vocabulary.tokens)] = [bool(token) for token in vocabulary.tokens]
        self._text = np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32)
        """The mask of all tokens that are text."""
        self._end = vocabulary.eos_ids[0]

    def compile(self, params: GuidedDecodingParams) -> _Grammar:
        with self._one_at_a_time:
            try:
                return _Grammar(self._compile(params), self._text, self._end)
            except RequestError:
                raise
            except Exception as error:  # noqa: BLE001  it has no common class for what is wrong with the text
                text = str(error).strip() or type(error).__name__
                raise RequestError(f"guided_decoding.{params.kind}: {text:.2000}", param=params.kind) from None

    def _compile(self, params: GuidedDecodingParams) -> xgrammar.CompiledGrammar:
        compiler = self._compiler
        if params.json is not None or params.json_object:
            schema = params.json or '{"type": "object"}'
            check_schema(json.loads(schema))
            return compiler.compile_json_schema(schema, strict_mode=False, max_whitespace_cnt=_MOST_WHITE_SPACE)
        if params.regex is not None:
            return compiler.compile_regex(params.regex)
        if params.choice is not None:
            texts = " | ".join(json.dumps(text, ensure_ascii=False) for text in params.choice)
            return compiler.compile_grammar(f"root ::= {texts}")
        if params.grammar is not None:
            return compiler.compile_grammar(params.grammar)
        check_tag(json.loads(params.structural_tag))
        return compiler.compile_structural_tag(params.structural_tag)


class _Grammar:
    """See ``contract.Grammar``."""

    def __init__(self, compiled: xgrammar.CompiledGrammar, text: np.ndarray, end: int) -> None:
        self._compiled = compiled
        self._text = text
        self._end = end

    def matcher(self) -> _Matcher:
        return _Matcher(xgrammar.GrammarMatcher(self._compiled), self._text, self._end)


class _Matcher:
    """See ``contract.Matcher``."""

    def __init__(self, matcher: xgrammar.GrammarMatcher, text: np.ndarray, end: int) -> None:
        self._matcher = matcher
        self._text = text
        self._end = end

    def consume(self, token: int) -> bool:
        # It would take an end token, and special ones whose text happens to fit.
        if not self._text[token // 32] >> np.uint32(token % 32) & 1:
            return False
        return self._matcher.accept_token(token)

    def rollback(self, n_tokens: int) -> None:
        if n_tokens:
            self._matcher.rollback(n_tokens)

    def fill(self, words: np.ndarray) -> bool:
        if not self._matcher.fill_next_token_bitmask(words.view(np.int32)[None, :]):
            words[:] = ~np.uint32(0)  # it leaves a mask of all tokens to its reader
        may_end = bool(words[self._end // 32] >> np.uint32(self._end % 32) & 1)
        words &= self._text
        return may_end
