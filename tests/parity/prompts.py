"""Prompts of random tokens, the same ones every time."""

from __future__ import annotations

import random
from collections.abc import Sequence

LENGTHS = (1, 3, 40, 70, 200)
"""Below, at and above the borders of cache blocks (32 tokens) and of windows (8, 40)."""


def random_prompts(vocab_size: int, lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    """One prompt for each length, without the special tokens 0, 1 and 2."""
    rng = random.Random(3)
    return [[rng.randrange(3, vocab_size) for _ in range(length)] for length in lengths]
