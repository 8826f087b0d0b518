"""One readable sentence out of a pydantic error."""

from __future__ import annotations

from pydantic import BaseModel, ValidationError

from .errors import did_you_mean


def first_problem(cls: type[BaseModel], error: ValidationError) -> tuple[str, str]:
    """(field, sentence) for the first problem in ``cls``: what was given, what is allowed. The field may be empty."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        hint = did_you_mean(name, cls.model_fields) or f" Known names: {', '.join(sorted(cls.model_fields))}."
        return name, f"{cls.__name__} has no field {name!r}.{hint}"
    text = first["msg"].removeprefix("Value error, ")
    if not name:
        return name, f"{cls.__name__}: {text}"
    return name, f"{cls.__name__}.{name}: {text} (given: {first['input']!r})"
