"""Pictures, in whatever form a user has them, as RGB."""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from headrace.core.errors import RequestError

MAX_PIXELS = 64 << 20
"""Of a picture, before it is made smaller: a small file can claim to be a huge one."""
_PARAM = "multi_modal_data"


def open_image(given: Any) -> Image.Image:
    """An RGB picture, turned as its EXIF data say.

    Args:
        given: a PIL picture, the bytes of a file, a ``pathlib.Path``, a ``data:`` URL, or an array of uint8, [height,
            width, 3] or [height, width].

    Raises ``RequestError``.
    """
    if isinstance(given, Image.Image):
        return _rgb(given)
    if isinstance(given, np.ndarray):
        if given.dtype != np.uint8 or given.ndim not in (2, 3) or (given.ndim == 3 and given.shape[2] != 3):
            raise RequestError(
                f"an image as an array is [height, width, 3] or [height, width] of uint8, not {given.dtype}"
                f" {list(given.shape)}",
                param=_PARAM,
            )
        return _rgb(Image.fromarray(given))
    if isinstance(given, str):
        return _decoded(_bytes_of_url(given))
    if isinstance(given, Path):
        try:
            return _decoded(given.read_bytes())
        except OSError as error:
            raise RequestError(f"the image {given} cannot be read: {error.strerror}", param=_PARAM) from None
    if isinstance(given, (bytes, bytearray, memoryview)):
        return _decoded(bytes(given))
    raise RequestError(
        f"an image is a PIL picture, bytes, a pathlib.Path, a data: URL or an array, not {type(given).__name__}",
        param=_PARAM,
    )


def _bytes_of_url(url: str) -> bytes:
    scheme = url.partition(":")[0].lower()
    if scheme != "data":
        raise RequestError(
            f"an image by the URL {url[:40]!r}: nothing is fetched here; send a data: URL with the image in it"
            " (data:image/png;base64,...)",
            param=_PARAM,
        )
    head, comma, body = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise RequestError("a data: URL of an image is data:image/...;base64,...", param=_PARAM)
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise RequestError(f"the data: URL of an image is no base64: {error}", param=_PARAM) from None


def _decoded(data: bytes) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(data))
        _check_size(picture)
        return _rgb(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RequestError(f"an image of {len(data)} bytes cannot be read: {error}", param=_PARAM) from None


def _rgb(picture: Image.Image) -> Image.Image:
    _check_size(picture)
    return ImageOps.exif_transpose(picture).convert("RGB")


def _check_size(picture: Image.Image) -> None:
    width, height = picture.size
    if width * height > MAX_PIXELS or not width or not height:
        raise RequestError(
            f"an image of {width} x {height} pixels; at most {MAX_PIXELS} pixels are taken, and at least one",
            param=_PARAM,
        )
