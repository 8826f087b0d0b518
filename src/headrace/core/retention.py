"""How long the cache should keep what a request computes. Names and defaults follow TensorRT-LLM's LLM API."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, ClassVar, NamedTuple, Self

from pydantic import BeforeValidator, Field, model_validator

from .config_base import Config
from .errors import RequestError
from .plan import BLOCK_TOKENS

DEFAULT_PRIORITY = 35
"""Of what nobody says anything about."""


def _milliseconds(value: Any) -> Any:
    return value / timedelta(milliseconds=1) if isinstance(value, timedelta) else value


Priority = Annotated[int, Field(ge=0, le=100)]
Duration = Annotated[float, Field(gt=0, le=1e12), BeforeValidator(_milliseconds)]


class TokenRangeRetentionConfig(Config):
    """Tokens of the prompt, and what they are worth."""

    token_start: Annotated[int, Field(ge=0)]
    token_end: Annotated[int, Field(ge=1)] | None = None
    """One past the last; None, or beyond the prompt: to its end."""
    priority: Priority = DEFAULT_PRIORITY
    """0 to 100. What has the lowest is given up first, and of one priority what was used longest ago."""
    duration_ms: Duration | None = None
    """After so many milliseconds without use the priority is 35 again; None: it stays. A ``timedelta`` will do."""

    def __init__(self, *args: Any, **data: Any) -> None:
        super().__init__(**dict(zip(type(self).model_fields, args, strict=False)), **data)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.token_end is not None and self.token_end <= self.token_start:
            raise ValueError(f"token_end={self.token_end} is not behind token_start={self.token_start}")
        return self


_TokenRange = TokenRangeRetentionConfig


class KvCacheRetentionConfig(Config):
    """What blocks of a request are worth once it has ended.

    A block goes by the range of its first token. What no range names has 35, or less where what comes before it has
    less; and nothing is worth less than what comes after it, which is useless without it. A block that several requests
    share has the highest priority that one of them gave it.
    """

    TokenRangeRetentionConfig: ClassVar[type[_TokenRange]] = _TokenRange

    token_range_retention_configs: Annotated[tuple[_TokenRange, ...], Field(max_length=1024)] = ()
    """Ranges of the prompt that do not overlap."""
    decode_retention_priority: Priority = DEFAULT_PRIORITY
    """Of what is generated."""
    decode_duration_ms: Duration | None = None

    @model_validator(mode="after")
    def _apart(self) -> Self:
        ranges = sorted(self.token_range_retention_configs, key=lambda one: one.token_start)
        for one, other in itertools.pairwise(ranges):
            if one.token_end is None or one.token_end > other.token_start:
                raise ValueError(
                    f"token_range_retention_configs: the ranges that begin at {one.token_start} and"
                    f" {other.token_start} overlap"
                )
        return self


class Ask(NamedTuple):
    """What a request asks for a block."""

    priority: int = DEFAULT_PRIORITY
    duration: float | None = None
    """Seconds without use, after which the priority is the usual one again."""


_USUAL = Ask()


@dataclass(frozen=True, slots=True)
class Asks:
    """What a request asks for each of its blocks."""

    prompt: tuple[Ask, ...] = ()
    """Of the blocks that begin with a token of the prompt; those beyond have ``decode``."""
    decode: Ask = _USUAL

    def of(self, number: int) -> Ask:
        """For block ``number`` of the sequence."""
        return self.prompt[number] if number < len(self.prompt) else self.decode


USUAL_ASKS = Asks()
"""Of a request that says nothing."""


def asks_of(config: KvCacheRetentionConfig, n_prompt: int) -> Asks:
    """``config`` for a prompt of ``n_prompt`` tokens, by block. Raises ``RequestError`` for a range beyond it."""
    ranges = config.token_range_retention_configs
    for one in ranges:
        if one.token_start >= n_prompt:
            raise RequestError(
                f"kv_cache_retention_config: a range begins at token_start={one.token_start}, and the prompt has"
                f" {n_prompt} tokens; leave it out",
                param="kv_cache_retention_config",
            )
    named: list[Ask | None] = [_range_at(ranges, first) for first in range(0, n_prompt, BLOCK_TOKENS)]
    says_decode = {"decode_retention_priority", "decode_duration_ms"} & config.model_fields_set
    named.append(_ask(config.decode_retention_priority, config.decode_duration_ms) if says_decode else None)
    *prompt, decode = _as_needed(_filled(named))
    return Asks(tuple(prompt), decode)


def _ask(priority: int, duration_ms: float | None) -> Ask:
    return Ask(priority, None if duration_ms is None else duration_ms / 1000)


def _range_at(ranges: Sequence[_TokenRange], token: int) -> Ask | None:
    for one in ranges:
        if one.token_start <= token and (one.token_end is None or token < one.token_end):
            return _ask(one.priority, one.duration_ms)
    return None


def _filled(named: Sequence[Ask | None]) -> list[Ask]:
    """What is not named is usual, or as cheap as what was named before it."""
    before: Ask = _USUAL
    filled = []
    for ask in named:
        before = ask or before
        filled.append(ask or min(before, _USUAL, key=lambda one: one.priority))
    return filled


def _as_needed(asks: Sequence[Ask]) -> list[Ask]:
    """Nothing is worth less than what comes after it."""
    best, needed = asks[-1], []
    for ask in reversed(asks):
        best = max(ask, best, key=worth)
        needed.append(best)
    return needed[::-1]


def worth(ask: Ask) -> tuple[int, float]:
    """Larger is kept longer."""
    return ask.priority, float("inf") if ask.duration is None else ask.duration
