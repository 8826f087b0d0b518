"""What of JSON Schema the xgrammar backend enforces. It passes over the rest without a word, so that is refused here.

The list is what the official test suite found true of it (``tests/guided/test_schema_suite.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from headrace.core.errors import RequestError

_NOTES = {
    "$schema",
    "$id",
    "$comment",
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
}
_DEFINITIONS = {"$defs", "definitions"}
_OF_TYPE = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "number": set(),
    "boolean": set(),
    "null": set(),
}
"""The keywords that are enforced beside a ``type``."""
_WHOLE = {"enum", "const", "anyOf", "$ref"}
"""Those that stand without other constraints."""


def check_schema(schema: Any) -> None:
    """Raises ``RequestError`` naming the first keyword that would not be enforced, and where it is."""
    for path, one in _schemas(schema, "#"):
        _check_one(path, one)


def check_tag(value: Any) -> None:
    """As ``check_schema``, of all schemas in a structural tag."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in ("json_schema", "schema") and isinstance(inner, dict | bool):
                check_schema(inner)
            else:
                check_tag(inner)
    elif isinstance(value, list):
        for inner in value:
            check_tag(inner)


def _schemas(schema: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(schema, dict):
        return
    yield path, schema
    for name in ("properties", *_DEFINITIONS):
        inner = schema.get(name)
        for key, one in inner.items() if isinstance(inner, dict) else ():
            yield from _schemas(one, f"{path}/{name}/{key}")
    for name in ("items", "additionalProperties"):
        yield from _schemas(schema.get(name), f"{path}/{name}")
    for name in ("anyOf", "prefixItems"):
        inner = schema.get(name)
        for index, one in enumerate(inner if isinstance(inner, list) else ()):
            yield from _schemas(one, f"{path}/{name}/{index}")


def _check_one(path: str, schema: dict[str, Any]) -> None:
    constraints = set(schema) - _NOTES - _DEFINITIONS
    kind = schema.get("type")
    whole = constraints & _WHOLE
    if whole:
        extra = constraints - {next(iter(sorted(whole)))} - ({"type"} if whole <= {"enum", "const"} else set())
        if extra:
            _refuse(path, sorted(extra)[0], f"beside {sorted(whole)[0]}")
        if "$ref" in whole and not str(schema["$ref"]).startswith(("#/$defs/", "#/definitions/")):
            _refuse(path, "$ref", "that leaves $defs and definitions")
        return
    if not constraints:
        return
    if not isinstance(kind, str) or kind not in _OF_TYPE:
        _refuse(path, sorted(constraints)[0], "without one type beside it" if kind is None else f"of {kind!r}")
    if set(schema.get("required", ())) - set(schema.get("properties", ())):
        _refuse(path, "required", "of a property that is not among properties")
    extra = constraints - {"type"} - _OF_TYPE[kind]
    if extra:
        _refuse(path, sorted(extra)[0], f"beside type {kind!r}")


def _refuse(path: str, keyword: str, where: str) -> None:
    raise RequestError(
        f"guided_decoding.json: {keyword} {where} (at {path}) is not enforced by xgrammar; leave it out, or set"
        " guided_decoding_backend='llguidance'",
        param="json",
    )
