"""Begin and end tokens around a text."""

from __future__ import annotations

import tokenizers
from tokenizers.processors import TemplateProcessing


def bos_eos_processor(backend: tokenizers.Tokenizer, bos: str | None, eos: str | None) -> TemplateProcessing | None:
    """Adds those of the two tokens that are given and in the vocabulary; None if there is nothing to add."""
    present = {token: backend.token_to_id(token) for token in (bos, eos) if token is not None}
    special = [(token, token_id) for token, token_id in present.items() if token_id is not None]
    known = {token for token, _ in special}
    if not known:
        return None
    # As pieces rather than as one text: a token may hold spaces or "$".
    before = [bos] if bos in known else []
    after = [eos] if eos in known else []
    return TemplateProcessing(
        single=[*before, "$A", *after], pair=[*before, "$A", *after, *before, "$B", *after], special_tokens=special
    )
