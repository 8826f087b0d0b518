"""``response_format`` and the ``guided_*`` fields: the shapes in which clients ask for guided decoding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from headrace.core.errors import RequestError
from headrace.core.guided_params import GuidedDecodingParams


def _json_schema(value: Mapping[str, Any]) -> GuidedDecodingParams:
    inner = value["json_schema"]
    unknown = set(inner) - {"name", "description", "schema", "strict"} if isinstance(inner, dict) else {"json_schema"}
    if unknown or "schema" not in inner:
        raise ValueError("json_schema is an object of schema, and if you like name, description and strict")
    return GuidedDecodingParams(json=inner["schema"])


_FORMATS: dict[str, tuple[frozenset[str], Callable[[Mapping[str, Any]], GuidedDecodingParams | None]]] = {
    "text": (frozenset(), lambda value: None),
    "json_object": (frozenset(), lambda value: GuidedDecodingParams(json_object=True)),
    "json": (frozenset({"schema"}), lambda value: GuidedDecodingParams(json=value["schema"])),
    "json_schema": (frozenset({"json_schema"}), _json_schema),
    "regex": (frozenset({"regex"}), lambda value: GuidedDecodingParams(regex=value["regex"])),
    "ebnf": (frozenset({"ebnf"}), lambda value: GuidedDecodingParams(grammar=value["ebnf"])),
    "structural_tag": (frozenset({"format"}), lambda value: GuidedDecodingParams(structural_tag=dict(value))),
}
"""Type to its other fields, and what it asks for."""


def read_response_format(value: Any) -> GuidedDecodingParams | None:
    """Raises ``ValueError``."""
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in _FORMATS:
        raise ValueError(f"give an object whose type is one of {', '.join(_FORMATS)}")
    fields, read = _FORMATS[kind]
    if set(value) != fields | {"type"}:
        raise ValueError(f"type {kind!r} has the fields {', '.join(sorted(fields | {'type'}))}, no more and no less")
    return _checked(read, value)


def read_guided(name: str, value: Any) -> GuidedDecodingParams:
    """One of the fields of ``GUIDED_FIELDS``. Raises ``ValueError``."""
    return _checked(lambda given: GuidedDecodingParams(**{GUIDED_FIELDS[name]: given}), value)


GUIDED_FIELDS = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}
"""The names that other servers have, and those of ``GuidedDecodingParams``."""


def _checked(read: Callable[[Any], Any], value: Any) -> Any:
    try:
        return read(value)
    except RequestError as error:
        raise ValueError(str(error)) from None


_TYPE = {"type": "string"}
_SCHEMA = {"type": "object"}


def _object(kind: str, **fields: Any) -> dict[str, Any]:
    properties = {"type": {"type": "string", "enum": [kind]}, **fields}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


RESPONSE_FORMAT_SCHEMA = {
    "anyOf": [
        _object("text"),
        _object("json_object"),
        _object("json", schema=_SCHEMA),
        _object(
            "json_schema",
            json_schema={
                "type": "object",
                "properties": {"name": _TYPE, "description": _TYPE, "schema": _SCHEMA, "strict": {"type": "boolean"}},
                "required": ["schema"],
                "additionalProperties": False,
            },
        ),
        _object("regex", regex=_TYPE),
        _object("ebnf", ebnf=_TYPE),
        _object("structural_tag", format={"type": "object"}),
        {"type": "null"},
    ]
}
"""For the OpenAPI document."""
