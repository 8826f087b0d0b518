"""Which features meet on which family.

Three tiers: a quick one, a slow one with a sample that turns from day to day, and the full one with all the rest.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

from headrace.core.features import FEATURES, absent_with_states, feature

FULL = ("llama", "qwen2", "qwen3", "nemotron", "decilm", "mixtral", "qwen3-moe", "deepseek-v3")
"""Families whose layers all keep everything."""
WINDOWED = (
    "gemma3-untied-window-40",
    "mistral-window-40-odd-mqa",
    "phi3-longrope-long",
    "exaone4-window-40-odd",
    "gpt-oss-window-40-odd",
    "llama4-chunk-40-odd",
)
"""Families with a window: in some layers (Gemma, GPT-OSS, EXAONE and Llama 4, whose full layers have no rope) or in all
(Mistral, Phi with its long rope). The window, or the chunk of Llama 4, is longer than a block and shorter than the
prompts."""
SEEING = ("mllama",)
"""Families that look at pictures: half of their prompts have some."""
STATEFUL = ("nemotron-h-experts", "qwen3-next")
"""Families with recurrent layers."""
TOUCHING_STATES = frozenset(
    (
        *("batching", "chunked_prefill", "kv_reuse", "preemption", "overlap", "graph", "ngram", "n", "cancel"),
        "beam_search",
    )
)
"""What has to do with where states are kept and when they move on: pairs of these are in every slow run on those
families."""
FAMILIES = (*FULL, *WINDOWED, *SEEING, *STATEFUL)
"""Variants of ``eval.tiny_variants``, one for each architecture."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """How weights, keys, values and activations are kept, in the plain run too."""

    quant_algo: str | None = None
    kv: str = "auto"
    dtype: str = "float32"


QUANTISED = {
    "qwen2-in-int8": ("qwen2", Numbers("int8")),
    "qwen3-moe-in-int8": ("qwen3-moe", Numbers("int8")),
    "gemma3-in-int4": ("gemma3-untied-window-40", Numbers("int4")),
    "qwen3-kv-int8": ("qwen3", Numbers(kv="int8")),
    "gpt-oss-kv-fp8": ("gpt-oss-window-40-odd", Numbers(kv="fp8")),
    "llama4-kv-int8": ("llama4-chunk-40-odd", Numbers(kv="int8")),
    "deepseek-v3-kv-fp8": ("deepseek-v3", Numbers(kv="fp8")),
    "nemotron-h-kv-int8": ("nemotron-h-experts", Numbers("int8", kv="int8")),
}
"""A variant, and numbers of few bits: of weights; of a cache that keeps everything, a window, chunks, latent vectors,
or keys beside states."""


def variant_of(family: str) -> str:
    """The tiny model of a family, whatever its numbers are kept in."""
    return QUANTISED[family][0] if family in QUANTISED else family


ENCODE_ONLY = ("bert", "classification", "reward")
"""Modules of architectures that do not generate: ``parity/test_pooling.py`` and ``test_bert.py`` have them."""

NAMES = tuple(row.name for row in FEATURES)

TURN = int(os.environ.get("HEADRACE_TURN", time.time() // 86_400))
"""Which sample the slow tier takes: another one every day, or the one that the variable says."""

QUICK_WITH = {
    "best_of": frozenset[str](),
    "retention": frozenset(("host_cache",)),
    "windows": frozenset(("kv_reuse", "preemption")),
    "logits": frozenset(("chunked_prefill", "kv_reuse", "preemption", "graph", "ngram", "beam_search")),
    "beam_search": frozenset(
        ("chunked_prefill", "kv_reuse", "preemption", "overlap", "graph", "ngram", "guided", "logits")
    ),
    "lora": frozenset(("kv_reuse", "graph", "ngram")),
    "save_states": frozenset(("chunked_prefill", "preemption", "graph")),
    "eagle3_two_model": frozenset(("kv_reuse", "preemption")),
    "draft_tree": frozenset(("preemption", "guided")),
    "mtp": frozenset(("kv_reuse", "preemption", "graph")),
}
"""Features whose pairs are many or take a plain run of their own: the quick tier has them with these alone, the slow
one has each of the other pairs on a family."""

Tier = Literal["quick", "slow", "full"]
How = Literal["", "greedy", "drawn", "mixed"]


def go_together(names: tuple[str, ...]) -> bool:
    """Whether the table excludes none of them by another."""
    return not any(other in (feature(one).excludes or {}) for one, other in itertools.permutations(names, 2))


PAIRS = tuple(pair for pair in itertools.combinations(NAMES, 2) if go_together(pair))

STAYS_WHOLE = {("host_cache", "windows"): ("mllama", "nemotron-h-experts")}
"""Families on which a pair has not been made to act: what windows leave of the cache never goes to the host."""


@cache
def names_on(family: str) -> tuple[str, ...]:
    """Features that can act on a family."""
    absent = absent_with_states() if variant_of(family) in STATEFUL else {}
    return tuple(name for name in NAMES if name not in absent)


@cache
def pairs_on(family: str) -> tuple[tuple[str, ...], ...]:
    """Every two of them that go together."""
    names = set(names_on(family))
    return tuple(pair for pair in PAIRS if set(pair) <= names and family not in STAYS_WHOLE.get(pair, ()))


def everything(family: str, turn: int) -> tuple[str, ...]:
    """As many features at once as go together. Where some exclude each other, ``turn`` says who goes first, and one
    family of three has windows set by hand: with those no layer keeps everything."""
    names = tuple(name for name in names_on(family) if name != "windows" or turn % 3 == 0)
    rivals = [name for name in names if any(not go_together((name, other)) for other in names)]
    shift = turn % max(1, len(rivals))
    order = [*rivals[shift:], *rivals[:shift]]
    if variant_of(family) in STATEFUL:
        # Blocks of the draft model's keys beside states leave so much room that nobody is preempted.
        order.sort(key="draft_model".__eq__)
    chosen: list[str] = []
    for name in order:
        if all(go_together((name, other)) for other in chosen):
            chosen.append(name)
    return tuple(name for name in names if name in chosen or name not in rivals)


def is_for_quick(pair: tuple[str, ...]) -> bool:
    """False for pairs that are left to the slow tier."""
    return all(one in QUICK_WITH.get(other, (one,)) for one, other in itertools.permutations(pair))


def _quick() -> Iterator[tuple[tuple[str, ...], str]]:
    """Every quick pair on one family: the one that its features are newest to, of those with the fewest pairs."""
    met: dict[str, Counter[str]] = {family: Counter() for family in FAMILIES}
    for pair in filter(is_for_quick, PAIRS):
        can = [family for family in FAMILIES if pair in pairs_on(family)]
        family = min(can, key=lambda one: (sum(met[one][name] > 0 for name in pair), met[one].total()))
        met[family].update(pair)
        yield pair, family


@dataclass(frozen=True, slots=True)
class Case:
    """Features that are on together, on a tiny model of a family."""

    names: tuple[str, ...]
    family: str
    tier: Tier
    how: How = ""
    """Where it is not empty several requests run at once, whatever the features, and all are greedy, or drawn, or half
    of them (``kinds.py``)."""

    @property
    def id(self) -> str:
        names = "everything" if len(self.names) > 3 else "+".join(self.names)
        return f"{names}-{self.family}" + (f"-{self.how}" if self.how else "")


def all_cases(turn: int = TURN) -> list[Case]:
    """Every feature alone, every pair, and everything at once, on every family.

    Quick are everything at once on every family, and each pair but those of ``QUICK_WITH`` on one, so that every
    family sees every feature in company. Slow are every feature alone on a third of the families, and every third day
    each pair on one family more. Full is the rest. A family's cases stand together: they share its plain runs.
    """
    quick = set(_quick())
    families = (*FAMILIES, *QUANTISED)
    # What products are made of knows no feature: everything at once says most of it, and what fails is found alone.
    cases = [Case(everything(family, index), family, "quick") for index, family in enumerate(families)]
    for index, family in enumerate(families):
        for place, name in enumerate(names_on(family)):
            is_drawn = (index - place - turn) % 3 == 0
            cases.append(Case((name,), family, "slow" if is_drawn else "full"))
    for index, family in enumerate(FAMILIES):
        for place, pair in enumerate(pairs_on(family)):
            is_drawn = (index - place - turn) % (3 * len(FAMILIES)) == 0
            is_drawn |= family in STATEFUL and set(pair) <= TOUCHING_STATES
            tier: Tier = "quick" if (pair, family) in quick else "slow" if is_drawn else "full"
            cases.append(Case(pair, family, tier))
    return sorted(cases, key=lambda case: (case.tier, families.index(case.family)))
