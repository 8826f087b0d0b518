"""``GuidedDecodingParams``: what an output must look like. Names follow TensorRT-LLM's LLM API."""

from __future__ import annotations

import dataclasses
import json as json_module
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from .errors import RequestError

MAX_TEXT = 256 * 1024
"""Characters of a schema, an expression, a grammar, or of all choices together."""
_MAX_CHOICES = 4096


@dataclass(frozen=True, slots=True)
class GuidedDecodingParams:
    """Exactly one of the fields says what the output is. It holds for the whole output; only ``max_tokens`` and stop
    texts cut it short. Raises ``RequestError`` naming the field."""

    json: Any = None
    """A JSON schema: a dict, its text, or a pydantic model class. Kept as text."""
    regex: str | None = None
    """A regular expression that the whole output matches."""
    grammar: str | None = None
    """llguidance: Lark, or GBNF (``root ::= ...``). xgrammar: EBNF (``root ::= ...``)."""
    json_object: bool = False
    """Any JSON object."""
    structural_tag: Any = None
    """Free text with parts that follow schemas: a dict or its text, in xgrammar's format. Kept as text."""
    choice: tuple[str, ...] | None = None
    """One of these texts."""

    def __post_init__(self) -> None:
        given = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) not in (None, False)]
        if len(given) != 1:
            names = ", ".join(field.name for field in dataclasses.fields(self))
            raise RequestError(
                f"GuidedDecodingParams: {', '.join(given) or 'nothing'} given; give exactly one of {names}",
                param="guided_decoding",
            )
        (name,) = given
        try:
            value = _CHECKS[name](getattr(self, name))
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"GuidedDecodingParams.{name}: {error}", param=name) from None
        object.__setattr__(self, name, value)

    @property
    def kind(self) -> str:
        """The name of the field that is set."""
        return next(field.name for field in dataclasses.fields(self) if getattr(self, field.name) not in (None, False))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"give a text, not {value!r:.60}")
    if len(value) > MAX_TEXT:
        raise ValueError(f"{len(value)} characters; at most {MAX_TEXT} are taken")
    value.encode()  # a UnicodeEncodeError is a ValueError
    return value


def _json_text(value: Any) -> str:
    """The text of a JSON object, given as such or as text."""
    if isinstance(value, type) and issubclass(value, BaseModel):
        value = value.model_json_schema()
    parsed = json_module.loads(value) if isinstance(value, str) else value
    if not isinstance(parsed, dict):
        raise TypeError(f"give a dict or its JSON text, not {value!r:.60}")
    return _text(json_module.dumps(parsed, allow_nan=False))


def _flag(value: Any) -> bool:
    if value is not True:
        raise TypeError("give True or False")
    return value


def _choices(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= _MAX_CHOICES:
        raise TypeError(f"give a list of 1 to {_MAX_CHOICES} texts")
    texts = tuple(_text(one) for one in value)
    _text("".join(texts))
    return texts


_CHECKS = {
    "json": _json_text,
    "regex": _text,
    "grammar": _text,
    "json_object": _flag,
    "structural_tag": _json_text,
    "choice": _choices,
}
