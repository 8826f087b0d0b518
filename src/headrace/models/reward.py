"""Reward models of Qwen2.5-Math: one number for an answer, or the chance of each step to be right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.core.pooling import PoolingSpec
from headrace.layers.base import BuildContext
from headrace.layers.score import TwoLayerScores

from .qwen2 import Qwen2ForCausalLM


class Qwen2ForRewardModel(Qwen2ForCausalLM):
    """Qwen2 with a head of two layers; the reward is its output at the last token."""

    def __init__(self, config: Mapping[str, Any], ctx: BuildContext) -> None:
        super().__init__(config, ctx)
        spec = PoolingSpec(gives="reward", width=1, pooling_types=("last", "all"), generates=False)
        self.end_with(TwoLayerScores(ctx, "score", self.embed.weight.shape[-1], 1), spec)


class Qwen2ForProcessRewardModel(Qwen2ForCausalLM):
    """Qwen2 with a head of two layers and two outputs: softmax over them, at the token that ends a step, is the chance
    that the step is (bad, good)."""

    def __init__(self, config: Mapping[str, Any], ctx: BuildContext) -> None:
        super().__init__(config, ctx)
        spec = PoolingSpec(
            gives="step rewards",
            width=2,
            pooling_type="step",
            pooling_types=("step", "all"),
            activation="softmax",
            labels=("bad", "good"),
            step_tag="<extra_0>",
            generates=False,
        )
        self.end_with(TwoLayerScores(ctx, "score", self.embed.weight.shape[-1], 2), spec)
