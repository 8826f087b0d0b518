"""Pictures for Llama 3.2 Vision: fitted into a canvas of tiles, which is cut up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from headrace.core.errors import ModelError
from headrace.core.media import MediaData, MediaItem, MediaTensor, digest_of

from .contract import items_of, places_of
from .images import open_image

_USUAL_MEAN = (0.48145466, 0.4578275, 0.40821073)
_USUAL_STD = (0.26862954, 0.26130258, 0.27577711)
_BILINEAR = 2
"""``resample`` of the configuration, as PIL numbers it."""


class MllamaProcessor:
    """See ``contract.MediaProcessor``. A picture takes one place, whatever its size.

    Args:
        config: of the model.
        preprocessor: ``preprocessor_config.json``; empty where there is none.

    Raises ``ModelError`` for a preprocessor that does something else.
    """

    kinds = ("image",)

    def __init__(self, config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> None:
        vision = config.get("vision_config") or {}
        self._tile = int(vision.get("image_size", 448))
        self._n_tiles = int(vision.get("max_num_tiles", 4))
        patch = int(vision.get("patch_size", 14))
        self._n_patches = (self._tile // patch) ** 2 + 1
        self.placeholders = {"image": int(config.get("image_token_index", 128256))}
        self._mean = np.array(preprocessor.get("image_mean", _USUAL_MEAN), np.float32)
        self._std = np.array(preprocessor.get("image_std", _USUAL_STD), np.float32)
        self._check(preprocessor)

    def __call__(self, ids: tuple[int, ...], data: MediaData) -> tuple[tuple[int, ...], tuple[MediaItem, ...]]:
        given = items_of(data, self.kinds)["image"]
        places = places_of(ids, self.placeholders["image"], "image", len(given))
        return ids, tuple(self._item(one, place) for one, place in zip(given, places, strict=True))

    def _item(self, given: Any, place: int) -> MediaItem:
        tiles, ratio = self.tiles(open_image(given))
        numbers = np.array(arrangements(self._n_tiles).index(ratio) + 1, np.int64)
        arrays = {"pixels": tiles, "mean": self._mean, "std": self._std, "aspect_ratio_id": numbers}
        tensors = {name: MediaTensor(array.dtype.name, array.shape, array.tobytes()) for name, array in arrays.items()}
        return MediaItem("image", digest_of("image", tensors), place, 1, len(tiles) * self._n_patches, tensors)

    def tiles(self, picture: Image.Image) -> tuple[np.ndarray, tuple[int, int]]:
        """uint8 [n, tile, tile, 3], row by row, black where the picture ends; and how many high and wide."""
        size = self._tile
        high, wide = canvas_for(picture.height, picture.width, self._n_tiles, size)
        height, width = fitted(picture.height, picture.width, high * size, wide * size, size)
        canvas = np.zeros((high * size, wide * size, 3), np.uint8)
        canvas[:height, :width] = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
        cut = canvas.reshape(high, size, wide, size, 3).transpose(0, 2, 1, 3, 4)
        return np.ascontiguousarray(cut.reshape(-1, size, size, 3)), (high, wide)

    def _check(self, preprocessor: Mapping[str, Any]) -> None:
        size = preprocessor.get("size") or {"height": self._tile, "width": self._tile}
        wanted = {
            "size": {"height": self._tile, "width": self._tile},
            "max_image_tiles": self._n_tiles,
            "resample": _BILINEAR,
            **dict.fromkeys(("do_resize", "do_rescale", "do_normalize", "do_pad", "do_convert_rgb"), True),
        }
        found = {**preprocessor, "size": {name: size.get(name) for name in ("height", "width")}}
        for name, value in wanted.items():
            if found.get(name, value) != value:
                raise ModelError(
                    f"preprocessor_config.json: {name} = {found[name]!r}, and the model wants {value!r}: nothing else"
                    " is known here"
                )


def arrangements(n_tiles: int) -> list[tuple[int, int]]:
    """(high, wide) of up to ``n_tiles`` tiles, in the order that aspect ratios are numbered in."""
    return [(high, wide) for high in range(1, n_tiles + 1) for wide in range(1, n_tiles // high + 1)]


def canvas_for(height: int, width: int, n_tiles: int, tile: int) -> tuple[int, int]:
    """(high, wide) of the canvas for a picture: that into which it fits with the least enlargement, else with the least
    reduction; of equal ones the smallest."""
    choices = [(min(high * tile / height, wide * tile / width), high, wide) for high, wide in arrangements(n_tiles)]
    larger = [scale for scale, _, _ in choices if scale >= 1.0]
    best = min(larger) if larger else max(scale for scale, _, _ in choices)
    return min(((high, wide) for scale, high, wide in choices if scale == best), key=lambda size: size[0] * size[1])


def fitted(height: int, width: int, canvas_height: int, canvas_width: int, tile: int) -> tuple[int, int]:
    """(height, width) that a picture is resized to: at least a tile on one side, within the canvas, its shape kept."""
    most_high = min(max(height, tile), canvas_height)
    most_wide = min(max(width, tile), canvas_width)
    by_height, by_width = most_high / height, most_wide / width
    if by_width < by_height:
        return min(math.floor(height * by_width) or 1, most_high), most_wide
    return most_high, min(math.floor(width * by_height) or 1, most_wide)
