"""How experts are chosen within groups (DeepSeek-V3's router), out of a configuration."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.core.errors import ModelError
from headrace.layers.moe import SigmoidChoice

from .config import Fields, read_experts


@dataclass(frozen=True, slots=True)
class GroupedDefaults:
    """What an architecture takes for fields that are not there."""

    n_experts: int
    k: int
    n_groups: int
    top_groups: int
    factor: float


def read_grouped_choice(fields: Fields, defaults: GroupedDefaults) -> tuple[int, SigmoidChoice]:
    """(experts, how those of a row are chosen and weighed). Raises ModelError for groups that cannot be."""
    n_experts, k = read_experts(fields, ("n_routed_experts",), default=defaults.n_experts, default_k=defaults.k)
    n_groups = fields.integer("n_group", defaults.n_groups)
    top_groups = fields.integer("topk_group", defaults.top_groups)
    if n_experts % n_groups or n_experts // n_groups < 2 or top_groups > n_groups:
        raise ModelError(
            f"{fields.where}: n_routed_experts = {n_experts} in n_group = {n_groups} groups of which topk_group ="
            f" {top_groups} stay: groups must be equal, of 2 experts or more, and at least as many as stay"
        )
    if k > top_groups * (n_experts // n_groups):
        raise ModelError(
            f"{fields.where}: num_experts_per_tok = {k} is more than the {top_groups} groups that stay have experts"
        )
    return n_experts, SigmoidChoice(
        k,
        normalised=fields.flag("norm_topk_prob", True),
        n_groups=n_groups,
        top_groups=top_groups,
        factor=fields.number("routed_scaling_factor", defaults.factor),
    )
