"""What all configuration classes are."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import ConfigError
from .validate import first_problem

Positive = Annotated[int, Field(ge=1)]


class Config(BaseModel):
    """Base: frozen, and an unknown field or a value out of range is a ``ConfigError`` that names it."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise ConfigError(first_problem(type(self), error)[1]) from None
