"""Pictures on their way to a tower: read in any form, cut as transformers cuts them, refused with a reason."""

from __future__ import annotations

import base64
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from headrace import ModelError, RequestError
from headrace.core.media import cache_keys, seen_from
from headrace.media.find import media_processor
from headrace.media.images import open_image
from headrace.media.mllama import MllamaProcessor
from parity.mllama import MEAN, STD, picture

CONFIG = {"vision_config": {"image_size": 28, "patch_size": 14, "max_num_tiles": 4}, "image_token_index": 99}


def processor(**changes: Any) -> MllamaProcessor:
    return MllamaProcessor(CONFIG, changes)


def test_tiles_are_those_of_transformers_for_pictures_of_all_shapes() -> None:
    reference = MllamaImageProcessorPil(
        size={"height": 28, "width": 28}, max_image_tiles=4, image_mean=MEAN, image_std=STD
    )
    rng = random.Random(5)
    sizes = [(1, 1), (28, 28), (29, 28), (1, 300), (300, 1), (56, 28), (57, 56), (112, 28), (10, 9)]
    sizes += [(rng.randrange(1, 140), rng.randrange(1, 140)) for _ in range(60)]
    for seed, size in enumerate(sizes):
        image = picture(seed, *size)
        wanted = reference(image, return_tensors="np")
        _, (item,) = processor()((99,), {"image": [image]})
        arrays = {name: np.frombuffer(one.data, one.dtype).reshape(one.shape) for name, one in item.tensors.items()}
        n = len(arrays["pixels"])
        got = (arrays["pixels"].astype(np.float32) / 255 - arrays["mean"]) / arrays["std"]
        assert wanted["aspect_ratio_ids"][0, 0] == arrays["aspect_ratio_id"], size
        assert wanted["aspect_ratio_mask"][0, 0].sum() == n
        assert item.n_states == n * 5
        assert np.abs(wanted["pixel_values"][0, 0, :n] - got.transpose(0, 3, 1, 2)).max() < 1e-5, size


def test_a_picture_is_the_same_in_every_form(tmp_path: Path) -> None:
    image = picture(3, 40, 30)
    file = io.BytesIO()
    image.save(file, "png")
    (tmp_path / "a.png").write_bytes(file.getvalue())
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    forms = [image, np.asarray(image), file.getvalue(), tmp_path / "a.png", url]
    items = [processor()((5, 99), {"image": form})[1][0] for form in forms]
    assert len({item.digest for item in items}) == 1
    assert processor()((5, 99), {"image": image.transpose(Image.Transpose.ROTATE_180)})[1][0].digest != items[0].digest


def test_a_picture_is_turned_as_its_data_say() -> None:
    image = picture(3, 40, 30)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "png", exif=exif)
    assert np.array_equal(open_image(file.getvalue()), image.transpose(Image.Transpose.ROTATE_270))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (3.5, "not float"),
        (b"no picture", "cannot be read"),
        (np.zeros((4, 4, 4), np.uint8), r"not uint8 \[4, 4, 4\]"),
        (np.zeros((4, 4, 3)), "not float64"),
        (Image.new("L", (9000, 9000)), "9000 x 9000 pixels; at most"),
        (Path("/nowhere/a.png"), "cannot be read: No such file"),
        ("https://example.com/a.png", "nothing is fetched here"),
        ("a.png", "nothing is fetched here"),
    ],
)
def test_what_is_no_picture_is_refused(given: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        open_image(given)


def test_places_and_pictures_are_as_many() -> None:
    one = picture(1, 28, 28)
    for ids, data, words in (
        ((5, 6), {"image": one}, r"has 0 places for media of kind 'image' \(token id 99\), and 1 were given"),
        ((99, 99), {"image": [one]}, "has 2 places"),
        ((99,), {}, "has 1 places"),
        ((99,), {"video": [one]}, "has 'video'; this model takes image"),
    ):
        with pytest.raises(RequestError, match=words):
            processor()(ids, data)
    assert processor()((5, 6), {}) == ((5, 6), ())


def test_a_preprocessor_that_does_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"architectures": ["MllamaForConditionalGeneration"]}))
    found = media_processor(tmp_path)
    assert found is not None
    assert found.placeholders == {"image": 99}
    for field in ({"do_pad": False}, {"size": {"height": 14, "width": 14}}, {"max_image_tiles": 2}, {"resample": 3}):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(field))
        with pytest.raises(ModelError, match=next(iter(field))):
            media_processor(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    assert media_processor(tmp_path) is None


def test_rows_see_the_pictures_before_them() -> None:
    images = [picture(seed, 28, 28 * (1 + seed)) for seed in range(4)]
    ids = (99, 5, 99, 99, 6, 7, 99)
    _, items = processor()(ids, {"image": images})
    assert [item.n_states for item in items] == [5, 10, 15, 20]
    assert seen_from(items) == [(0, 0, 5), (2, 5, 15), (3, 5, 30), (6, 30, 50)]
    keys = cache_keys(ids, items)
    assert [key < 0 for key in keys] == [token == 99 for token in ids]
    assert len({*keys}) == 7
    again = cache_keys((1, 99), processor()((1, 99), {"image": images[1]})[1])
    assert again == [1, keys[2]]
