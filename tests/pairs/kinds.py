"""Every pair and many triples on one family of each kind, at greedy and at temperature 0.9, twelve requests at once.

Elsewhere half of the requests is greedy and, unless a feature is about it, one runs at a time.
"""

from __future__ import annotations

import hashlib
import itertools
from functools import cache

from headrace.core.features import FEATURES

from .cases import TURN, Case, How, go_together, names_on, pairs_on
from .scenarios import changes_output

KINDS = {
    "dense": "llama",
    "latent with experts": "deepseek-v3",
    "sliding": "gemma3-untied-window-40",
    "recurrent": "qwen3-next",
}
"""Kind -> family."""
N_TRIPLES = 200
"""On each kind."""
TURNS = 90
"""So many samples of the slow tier have all of it."""
DRAWING = frozenset(("n", "best_of"))
"""What greedy requests cannot have: all their outputs would be equal."""
SEARCHING = frozenset(("beam_search",))
"""What drawn requests cannot have: it draws nothing."""
NOT_OF_BEAMS = frozenset(row.name for row in FEATURES if "beam_search" in (row.not_on or {}))
"""What acts on requests beside those that search."""
ENDS_EARLY = frozenset(("preemption", "stop_strings"))
"""Greedy outputs of the recurrent model all meet a stop string before memory is short."""


def manners(names: tuple[str, ...]) -> tuple[How, ...]:
    """How requests with these features can be: all greedy, all drawn, or half of them, where no one can have all."""
    can_be_drawn = not SEARCHING & set(names)
    can_be_greedy = not DRAWING & set(names) and (can_be_drawn or not NOT_OF_BEAMS & set(names))
    can_be_greedy = can_be_greedy and not set(names) >= ENDS_EARLY
    if not can_be_greedy and not can_be_drawn:
        return ("mixed",)
    return (*(("greedy",) if can_be_greedy else ()), *(("drawn",) if can_be_drawn else ()))


@cache
def triples_on(family: str) -> tuple[tuple[str, ...], ...]:
    """A sample of what goes together, drawn by a hash: a new feature changes little of it."""
    every = filter(go_together, itertools.combinations(names_on(family), 3))
    drawn = sorted(every, key=lambda names: hashlib.sha256("+".join((family, *sorted(names))).encode()).digest())
    return tuple(sorted(drawn[:N_TRIPLES]))


@cache
def _all() -> tuple[tuple[tuple[str, ...], str, How], ...]:
    return tuple(
        (names, family, how)
        for family in KINDS.values()
        for names in (*pairs_on(family), *triples_on(family))
        for how in manners(names)
    )


def cases(turn: int = TURN) -> list[Case]:
    """All of them; a sample that turns is slow, the rest full. Those that share a plain run stand together."""
    found = [
        Case(names, family, "slow" if (place - turn) % TURNS == 0 else "full", how)
        for place, (names, family, how) in enumerate(_all())
    ]
    return sorted(found, key=lambda case: (case.tier, case.family, case.how, _shaping(case.names)))


@cache
def _shaping(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(filter(changes_output, names))
