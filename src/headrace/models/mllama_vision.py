"""The vision tower of Llama 3.2 Vision: a picture cut into tiles, all of them one sequence of patches."""

from __future__ import annotations

from dataclasses import replace

import torch

from headrace.core.errors import ModelError
from headrace.layers.adapters import NO_ADAPTERS
from headrace.layers.base import BuildContext, Layer, Parameter, stacked
from headrace.layers.linear import Linear
from headrace.layers.norm import LayerNorm
from headrace.layers.vision import GatedTable, PatchEmbedding, VisionBlock
from headrace.quant.schemes import NO_SCHEME

from .config import Fields

_ALIGNED = 8
"""Patches of a tile, its class token among them, are padded to a multiple of this."""
_OUTER_EPS = 1e-5
"""Of the norms before and after the local layers, whatever the configuration says."""


class MllamaVision(Layer):
    """Local layers, then gated global ones; the states that enter some of the local layers go beside the last.

    Its weights stay dense whatever scheme the text model's are in.
    """

    def __init__(self, ctx: BuildContext, fields: Fields, text_size: int) -> None:
        ctx = replace(ctx, scheme=NO_SCHEME, adapters=NO_ADAPTERS)
        fields.choice("hidden_act", ("gelu",), "gelu")
        self._dtype = ctx.dtype
        size, n_heads = fields.integer("hidden_size", 1280), fields.integer("attention_heads", 16)
        patch, eps = fields.integer("patch_size", 14), fields.number("norm_eps", 1e-5)
        n_local, n_global = fields.integer("num_hidden_layers", 32), fields.integer("num_global_layers", 8)
        self.image_size, self.n_tiles = fields.integer("image_size", 448), fields.integer("max_num_tiles", 4)
        if self.image_size % patch or size % n_heads:
            raise ModelError(
                f"{fields.where}: image_size = {self.image_size} must be a multiple of patch_size = {patch}, and"
                f" hidden_size = {size} of attention_heads = {n_heads}"
            )
        self.n_patches = (self.image_size // patch) ** 2 + 1
        """Of a tile, the class token among them."""
        ratios = fields.raw("supported_aspect_ratios", ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1)))
        n_ratios, inner = len(ratios) + 1, fields.integer("intermediate_size", 5120)
        self._taken = tuple(fields.raw("intermediate_layers_indices", (3, 7, 15, 23, 30)))
        width = size * (1 + len(self._taken))
        if fields.integer("vision_output_dim", width) != width or not set(self._taken) <= set(range(n_local)):
            raise ModelError(
                f"{fields.where}: intermediate_layers_indices = {list(self._taken)} must be layers below"
                f" num_hidden_layers = {n_local}, and vision_output_dim {width}: hidden_size for each and the last"
            )
        of_tile, of_patch = (self.n_tiles, 1, size), (self.n_tiles, self.n_patches, size)
        self.patches = PatchEmbedding(ctx, "vision_model.patch_embedding", size, patch)
        self.class_token = Parameter(ctx, (size,), stacked(("vision_model.class_embedding",), (size,)))
        positions = "vision_model.gated_positional_embedding"
        self.positions = Parameter(
            ctx, (self.n_patches, size), stacked((f"{positions}.embedding",), (self.n_patches,), size)
        )
        self.tile_positions = GatedTable(ctx, positions, n_ratios, of_patch, table="tile_embedding.weight")
        self.before = GatedTable(ctx, "vision_model.pre_tile_positional_embedding", n_ratios, of_tile)
        self.after = GatedTable(ctx, "vision_model.post_tile_positional_embedding", n_ratios, of_tile)
        self.norm_before = LayerNorm(ctx, "vision_model.layernorm_pre", size, _OUTER_EPS)
        self.norm_after = LayerNorm(ctx, "vision_model.layernorm_post", size, _OUTER_EPS)
        self.local_layers = tuple(
            VisionBlock(ctx, f"vision_model.transformer.layers.{i}", size, n_heads, inner, eps) for i in range(n_local)
        )
        self.global_layers = tuple(
            VisionBlock(ctx, f"vision_model.global_transformer.layers.{i}", size, n_heads, inner, eps, gated=True)
            for i in range(n_global)
        )
        self.projector = Linear(ctx, ("multi_modal_projector",), width, (text_size,), bias=True)

    def __call__(self, tiles: torch.Tensor, ratio: int) -> torch.Tensor:
        """[n, 3, image_size, image_size] fp32, the tiles of a picture row by row, and which of the aspect ratios they
        make, from 1 on -> [n * n_patches, text size]."""
        n = tiles.shape[0]
        real, order = _real_first(n, self.n_tiles, self.n_patches)
        ranges = torch.tensor([(0, len(order))] * real + [(0, real)] * (len(order) - real))
        x = self._embedded(tiles, ratio).flatten(0, 1)[order]
        kept = {}
        for index, layer in enumerate(self.local_layers):
            if index in self._taken:
                kept[index] = x[:real]
            x = layer(x, ranges)
        spread = self.after(ratio).expand(-1, _padded(self.n_patches), -1).flatten(0, 1)[order]
        x = (self.norm_after(x).float() + spread).to(self._dtype)
        for layer in self.global_layers:
            x = layer(x, ranges)
        beside = torch.stack([kept[index] for index in self._taken], -1).flatten(1) if kept else x[:real, :0]
        return self.projector(torch.cat((x[:real], beside), 1))

    def _embedded(self, tiles: torch.Tensor, ratio: int) -> torch.Tensor:
        """[n_tiles, padded patches, size]: tiles that are not there are black, and padding is zero."""
        empty = self.n_tiles - tiles.shape[0]
        tiles = torch.cat((tiles, tiles.new_zeros(empty, *tiles.shape[1:]))).to(self._dtype)
        x = (self.patches(tiles).float() + self.before(ratio)).to(self._dtype)
        x = torch.cat((self.class_token.data.expand(self.n_tiles, 1, -1), x), 1)
        share = 1.0 - self.tile_positions.gate.factor
        x = (x.float() + self.positions.data.float() * share + self.tile_positions(ratio)).to(self._dtype)
        x = self.norm_before(x.flatten(0, 1)).view(x.shape)
        return torch.nn.functional.pad(x, (0, 0, 0, _padded(self.n_patches) - self.n_patches))


def _padded(n_patches: int) -> int:
    return -(-n_patches // _ALIGNED) * _ALIGNED


def _real_first(n: int, n_tiles: int, n_patches: int) -> tuple[int, torch.Tensor]:
    """How many patches of ``n_tiles`` padded tiles are real, and all of them with those of the first ``n`` tiles in
    front.

    What is real sees everything, padding and empty tiles too; those see what is real (the mask of the reference is the
    outer product of two indicators). So either sees one range, once the real ones stand together.
    """
    place = torch.arange(n_tiles * _padded(n_patches)).view(n_tiles, -1)
    is_real = torch.zeros_like(place, dtype=torch.bool)
    is_real[:n, :n_patches] = True
    return n * n_patches, torch.cat((place[is_real], place[~is_real]))
