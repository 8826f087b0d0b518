"""The noise: known answers, the counter layout, and the statistics that a draw leans on."""

from __future__ import annotations

import math

import pytest
import sampling_reference as reference
import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace.sampling.philox import StreamKeys, noise_of, noise_of_all, philox4x32

# `philox4x32 10` in tests/kat_vectors of the authors' library (Random123 1.14.0).
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def keys(seeds: list[int], positions: list[int], outputs: list[int]) -> StreamKeys:
    def column(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64)[:, None]

    low, high = [seed & 0xFFFFFFFF for seed in seeds], [seed >> 32 for seed in seeds]
    return StreamKeys(column(low), column(high), column(positions), column(outputs))


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, expected: str) -> None:
    def words(text: str) -> tuple[torch.Tensor, ...]:
        return tuple(torch.tensor([int(word, 16)]) for word in text.split())

    got = philox4x32(words(counter), words(key))
    assert " ".join(f"{word.item():08x}" for word in got) == expected


U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)


@given(st.lists(st.tuples(U64, U32, U32), min_size=1, max_size=4), st.lists(st.integers(0, 99), min_size=1, max_size=9))
def test_noise_equals_the_reference_in_both_forms(streams: list[tuple[int, int, int]], ids: list[int]) -> None:
    stream_keys = keys(*map(list, zip(*streams, strict=True)))
    whole = noise_of_all(stream_keys, 99 + 1)
    some = noise_of(stream_keys, torch.tensor(ids).expand(len(streams), -1))
    for row, (seed, position, output) in enumerate(streams):
        assert some[row].tolist() == [reference.noise(seed, output, position, token) for token in ids]
        assert whole[row][ids].tolist() == some[row].tolist()


@pytest.mark.parametrize("vocab_size", [1, 3, 4, 5, 321])
def test_any_vocabulary_size(vocab_size: int) -> None:
    stream_keys = keys([7, 8], [1, 2], [0, 0])
    assert torch.equal(noise_of_all(stream_keys, vocab_size), noise_of_all(stream_keys, 1000)[:, :vocab_size])


def test_words_are_uniform() -> None:
    words = noise_of_all(keys(list(range(100)), [5] * 100, [0] * 100), 10_000).flatten()
    for shift in (28, 14, 0):  # high, middle and low bits
        counts = torch.bincount((words >> shift) & 15, minlength=16).double()
        expected = words.numel() / 16
        chi_square = ((counts - expected) ** 2 / expected).sum().item()
        assert chi_square < 44.3, "15 degrees of freedom, p = 1e-4"


@pytest.mark.parametrize("neighbour", ["seed", "high seed", "position", "output", "token"])
def test_neighbours_are_uncorrelated(neighbour: str) -> None:
    n = 200_000
    base = noise_of_all(keys([3], [10], [0]), n + 1).double().flatten()
    other = {
        "seed": lambda: noise_of_all(keys([4], [10], [0]), n + 1),
        "high seed": lambda: noise_of_all(keys([3 + (1 << 32)], [10], [0]), n + 1),
        "position": lambda: noise_of_all(keys([3], [11], [0]), n + 1),
        "output": lambda: noise_of_all(keys([3], [10], [1]), n + 1),
        "token": lambda: base.roll(1)[None, :],
    }[neighbour]()
    pair = torch.stack([base, other.double().flatten()])
    assert abs(torch.corrcoef(pair)[0, 1].item()) < 4.5 / math.sqrt(n)
