"""How a body is read: JSON in UTF-8, no field twice. What is not is refused with the reason."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from .errors import ApiError


class JsonRoute(APIRoute):
    """``APIRouter(route_class=JsonRoute)``: every handler with a body gets one that has passed."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(_JsonRequest(request.scope, request.receive))

        return strict


class _JsonRequest(Request):
    async def body(self) -> bytes:
        body = await super().body()
        if body:
            _check_headers(self.headers.get("content-type", ""), self.headers.get("content-encoding", "identity"))
        return body

    async def json(self) -> Any:
        return parse(await self.body())


def parse(body: bytes) -> Any:
    """The value of a body. Raises ``ApiError``."""
    try:
        return json.loads(body.decode("utf-8-sig"), object_pairs_hook=_once, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise _invalid(f"it is not UTF-8: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise _invalid(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise _invalid("it is nested too deeply") from None
    except ValueError:
        # Python's own limit, which keeps the conversion from taking quadratic time.
        raise _invalid(f"an integer has more than {sys.get_int_max_str_digits()} digits") from None


def _check_headers(kind: str, coding: str) -> None:
    media = kind.partition(";")[0].strip().lower()
    if not (media == "application/json" or (media.startswith("application/") and media.endswith("+json"))):
        raise ApiError(415, f"the body's Content-Type is {media!r:.100}; send JSON, as application/json")
    if coding.strip().lower() != "identity":
        raise ApiError(415, f"the body's Content-Encoding is {coding!r:.100}; send it as it is, without one")


def _once(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(fields)
    if len(found) != len(fields):
        seen: set[str] = set()
        twice = next(name for name, _ in fields if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ApiError(400, f"the body has the field {twice!r:.100} twice; give it once", param=twice)
    return found


def _no_constant(name: str) -> Any:
    raise ApiError(400, f"the body holds {name}, which is not JSON; give a number", code="invalid_json")


def _invalid(reason: str) -> ApiError:
    return ApiError(400, f"the body is not JSON: {reason}", code="invalid_json")
