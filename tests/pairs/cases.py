"""Which features meet on which family: all of them in the whole suite, a rotation of them in its quick half."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from headrace.core.features import FEATURES, absent_with_states, feature

FULL = ("llama", "qwen2", "qwen3", "nemotron", "decilm", "mixtral", "qwen3-moe")
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
STATEFUL = ("nemotron-h", "qwen3-next")
"""Families with recurrent layers."""
TOUCHING_STATES = frozenset(
    ("batching", "chunked_prefill", "kv_reuse", "preemption", "overlap", "graph", "ngram", "n", "cancel")
)
"""What has to do with where states are kept and when they move on: the pairs of these are quick on those families."""
FAMILIES = (*FULL, *WINDOWED, *STATEFUL)
"""Variants of ``parity.tiny``, one for each architecture."""
QUANTISED = {
    "qwen2-in-int8": ("qwen2", {"quant_config": {"quant_algo": "int8"}}),
    "qwen3-moe-in-int8": ("qwen3-moe", {"quant_config": {"quant_algo": "int8"}}),
    "gemma3-in-int4": ("gemma3-untied-window-40", {"quant_config": {"quant_algo": "int4"}}),
}
"""Weights in blocks: a variant and what its engine is built with, the plain run's too."""

ENCODE_ONLY = ("bert", "classification", "reward")
"""Modules of architectures that do not generate: ``parity/test_pooling.py`` and ``test_bert.py`` have them."""

NAMES = tuple(row.name for row in FEATURES)


def _possible(pair: tuple[str, ...]) -> bool:
    return not any(other in (feature(one).excludes or {}) for one, other in itertools.permutations(pair, 2))


PAIRS = tuple(pair for pair in itertools.combinations(NAMES, 2) if _possible(pair))


def names_on(family: str) -> tuple[str, ...]:
    """Features that can act on a family."""
    absent = absent_with_states() if family in STATEFUL else {}
    return tuple(name for name in NAMES if name not in absent)


def pairs_on(family: str) -> tuple[tuple[str, ...], ...]:
    """Every two of them that go together."""
    return tuple(pair for pair in PAIRS if set(pair) <= set(names_on(family)))


def _quick(kind: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Pairs, each on one family of a kind: the one that its features are newest to, of those with the fewest pairs."""
    met: dict[str, Counter[str]] = {family: Counter() for family in kind}
    for pair in pairs_on(kind[0]):
        family = min(kind, key=lambda one: (sum(met[one][name] > 0 for name in pair), met[one].total()))
        if kind != STATEFUL or set(pair) <= TOUCHING_STATES or not set(pair) <= set(met[family]):
            met[family].update(pair)
            yield pair, family


@dataclass(frozen=True, slots=True)
class Case:
    """Features that are on together, on a tiny model of a family."""

    names: tuple[str, ...]
    family: str
    is_slow: bool

    @property
    def id(self) -> str:
        return f"{'everything' if self.names == names_on(self.family) else '+'.join(self.names)}-{self.family}"


def all_cases() -> list[Case]:
    """Every feature alone, every pair, and everything at once, on every family. Of the pairs, each is quick on one
    family of each kind, which changes from pair to pair; on stateful ones, those that have to do with states. The
    cases of a family stand together: they share its plain runs."""
    quick = {*_quick(FULL), *_quick(WINDOWED), *_quick(STATEFUL)}
    families = (*FAMILIES, *QUANTISED)
    # What products are made of knows no feature: everything at once says most of it, and what fails is found alone.
    cases = [
        Case(names, family, is_slow=family in QUANTISED and len(names) == 1)
        for family in families
        for names in (*((name,) for name in names_on(family)), names_on(family))
    ]
    cases += [Case(pair, family, (pair, family) not in quick) for family in FAMILIES for pair in pairs_on(family)]
    return sorted(cases, key=lambda case: (case.is_slow, families.index(case.family)))
