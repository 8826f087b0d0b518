"""The chat page at /: files of ``serve/page``, which talk to the API of this server and to nothing else."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Response

from ..errors import ApiError

router = APIRouter(include_in_schema=False)

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_HEADERS = {
    # Nothing from elsewhere and no code but the files: should text of a model ever become markup, it stays inert.
    "Content-Security-Policy": "default-src 'self'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'; "
    "form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Files of two versions must not meet.
    "Cache-Control": "no-cache",
}


@cache
def _files() -> dict[str, Response]:
    """Path to answer, for every file of the page."""
    answers = {}
    for file in files("headrace.serve").joinpath("page").iterdir():
        kind = file.name.rpartition(".")[2]
        if kind in _TYPES:
            path = "/" if file.name == "index.html" else f"/page/{file.name}"
            answers[path] = Response(file.read_bytes(), headers=_HEADERS, media_type=_TYPES[kind])
    return answers


def is_page(path: str) -> bool:
    """Whether a path is a file of the page: those hold nothing secret, and are answered without a key."""
    return path in _files()


@router.get("/")
async def page() -> Response:
    """The page itself."""
    return _files()["/"]


@router.get("/page/{name}")
async def page_file(name: str) -> Response:
    """A part of the page."""
    answer = _files().get(f"/page/{name}")
    if answer is None:
        raise ApiError(404, f"the page has no file {name!r:.100}", code="not_found")
    return answer
