"""Guided decoding: outputs that follow a schema, an expression or a grammar. No torch."""

from __future__ import annotations

from headrace.core.errors import RequestError

from .contract import Compiler, Grammar, Matcher
from .thinking import Thinking
from .vocabulary import Vocabulary, vocabulary_of

__all__ = ["Compiler", "Grammar", "Matcher", "Thinking", "Vocabulary", "make_compiler", "vocabulary_of"]


def make_compiler(backend: str, vocabulary: Vocabulary) -> Compiler:
    """``backend``: llguidance or xgrammar. Imported here: each takes its time. Raises ``RequestError``."""
    try:
        if backend == "xgrammar":
            from .xgrammar_backend import XgrammarCompiler

            return XgrammarCompiler(vocabulary)
        from .llguidance_backend import LlguidanceCompiler

        return LlguidanceCompiler(vocabulary)
    except ImportError as error:
        raise RequestError(
            f"guided_decoding: guided_decoding_backend={backend!r} cannot be imported here ({error}); install it, or"
            " take the other one",
            param="guided_decoding",
        ) from error
