"""The race against all waits taken in full, and the order of tokens against a full sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace.sampling import draw
from headrace.sampling.filters import ordered_prefix
from headrace.sampling.numerics import MASS_ONE

MASSES = st.sampled_from([0, 1, 1000, MASS_ONE // 3, MASS_ONE]) | st.integers(0, MASS_ONE)
NOISE = st.sampled_from([0, 1, 2**32 - 1, 2**32 - 2, 2**31]) | st.integers(0, 2**32 - 1)


@given(st.lists(st.tuples(MASSES, NOISE), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_race_is_won_by_the_least_wait(pairs: list[tuple[int, int]], random) -> None:
    mass, noise = (torch.tensor([values]) for values in zip(*pairs, (MASS_ONE, 7), strict=True))
    waits = draw.wait(mass, noise)[0].tolist()
    winner = min(range(len(waits)), key=lambda token: (waits[token], token))
    assert draw.race(mass, noise).tolist() == [winner]
    ids = list(range(len(waits)))
    random.shuffle(ids)
    assert draw.race(mass[:, ids], noise[:, ids], torch.tensor([ids])).tolist() == [winner], "whatever the order"


def test_rows_race_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    mass = torch.randint(0, 1 << 20, (64, 500), generator=generator)
    noise = torch.randint(0, 1 << 32, (64, 500), generator=generator)
    assert draw.race(mass, noise).tolist() == draw.wait(mass, noise).argmin(-1).tolist()


def test_equal_waits_go_to_the_lower_id() -> None:
    mass = torch.tensor([[5, 9, 9, 9]])
    noise = torch.tensor([[1 << 31, 1 << 31, 1 << 31, 1 << 31]])
    assert draw.race(mass, noise).tolist() == [1]
    assert draw.race(mass, noise, torch.tensor([[0, 7, 3, 5]])).tolist() == [3]


def test_mass_zero_never_wins() -> None:
    mass = torch.tensor([[0, 1, 0]])
    noise = torch.tensor([[2**32 - 1, 0, 2**32 - 1]])  # the shortest wait that there is, and the longest
    assert draw.race(mass, noise).tolist() == [1]


@pytest.mark.parametrize("vocab_size", [7, 1024, 1025, 6000])
@pytest.mark.parametrize("length", [1, 2, 50, 256, 5000])
@pytest.mark.parametrize("decimals", [0, 1, 6])
def test_ordered_prefix_equals_a_full_sort(vocab_size: int, length: int, decimals: int) -> None:
    """``decimals`` 0: hundreds tie at every cut."""
    x = np.round(np.random.default_rng(vocab_size).normal(0, 2, (4, vocab_size)), decimals).astype(np.float32)
    x[1, 5:] = -np.inf
    values, ids = ordered_prefix(torch.from_numpy(x), length)
    for row in range(4):
        order = np.lexsort((np.arange(vocab_size), -x[row]))[:length]
        finite = x[row][order] > -np.inf
        assert ids[row].numpy()[finite].tolist() == order[finite].tolist()
        assert values[row].tolist() == x[row][order].tolist()
