"""The reference for prompts with pictures: transformers, with what it does differently from the original put right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import MllamaForConditionalGeneration
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Noise, smooth enough that its tiles differ after it is made smaller."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def pixels_of(model: MllamaForConditionalGeneration, pictures: Sequence[Image.Image]) -> Any:
    """What transformers' own processor makes of the pictures of one prompt."""
    size = model.config.vision_config.image_size
    processor = MllamaImageProcessorPil(
        size={"height": size, "width": size}, max_image_tiles=model.config.vision_config.max_num_tiles, image_mean=MEAN,
        image_std=STD,
    )  # fmt: skip
    return processor(list(pictures), return_tensors="pt")


def logprobs(
    model: MllamaForConditionalGeneration, ids: Sequence[int], pictures: Sequence[Image.Image]
) -> torch.Tensor:
    """[T, vocab_size] after each token of ``ids``, in which the image token stands once for each picture."""
    tokens = torch.tensor([list(ids)])
    if not pictures:
        return model(tokens).logits[0].log_softmax(-1)
    inputs = pixels_of(model, pictures)
    n_tiles = inputs.pop("num_tiles")
    mask = convert_sparse_cross_attention_mask_to_dense(
        [get_cross_attention_token_mask(list(ids), model.config.image_token_index)], n_tiles,
        model.config.vision_config.max_num_tiles, len(ids),
    )  # fmt: skip
    with _rows_without_a_picture_skip(model):
        given = {**inputs, "cross_attention_mask": torch.tensor(mask)}
        return model(tokens, **given, use_cache=False).logits[0].log_softmax(-1)


@contextmanager
def _rows_without_a_picture_skip(model: MllamaForConditionalGeneration) -> Iterator[None]:
    """The original keeps attention away from rows before the first picture as well, and not the MLP alone."""
    masks: dict[int, torch.Tensor] = {}
    hooks = []
    for index, layer in enumerate(model.model.language_model.layers):
        if not hasattr(layer, "cross_attn"):
            continue

        def note(module: Any, args: Any, kwargs: dict[str, Any], index: int = index) -> None:
            masks[index] = kwargs["full_text_row_masked_out_mask"]

        def skip(module: Any, args: Any, output: Any, index: int = index) -> Any:
            return masks[index][:, 0] * output[0], output[1]

        hooks.append(layer.register_forward_pre_hook(note, with_kwargs=True))
        hooks.append(layer.cross_attn.register_forward_hook(skip))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
