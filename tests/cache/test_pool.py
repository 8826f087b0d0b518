"""Blocks and sectors: what can be promised can be had, whatever was held and cached before."""

from __future__ import annotations

import random

import pytest

from headrace.cache.arena import ArenaLayout, GroupLayout
from headrace.cache.pool import BlockPool
from headrace.core.errors import IntegrityError


def pool_of(*per_sector: int, n_sectors: int = 6) -> BlockPool:
    return BlockPool(ArenaLayout(64, n_sectors, tuple(GroupLayout(1, 1, count) for count in per_sector)))


def test_the_null_block_is_never_handed_out() -> None:
    pool = pool_of(3)
    blocks = [pool.take(0) for _ in range(15)]
    assert sorted(blocks) == list(range(3, 18))
    assert not pool.has_free(0)
    with pytest.raises(IntegrityError, match="no free block"):
        pool.take(0)
    pool.check()


def test_a_sector_goes_back_when_its_last_block_does() -> None:
    pool = pool_of(2, 1, n_sectors=2)
    first, second = pool.take(0), pool.take(0)
    assert not pool.fits([0, 1])
    pool.unpin(0, first)
    assert not pool.fits([0, 1])
    pool.unpin(0, second)
    assert pool.fits([0, 1])
    assert pool.take(1) == 1
    pool.check()


def test_a_cached_block_can_be_promised_and_a_pinned_one_cannot() -> None:
    pool = pool_of(1, n_sectors=2)
    block = pool.take(0)
    pool.keep(0, block)
    assert not pool.fits([1])
    assert pool.unpin(0, block)
    assert pool.fits([1])
    assert not pool.fits([1], [(0, block)])
    assert not pool.has_free(0)
    pool.forget(0, block)
    assert pool.has_free(0)
    pool.check()


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda pool, block: (pool.unpin(0, block), pool.unpin(0, block)), "given back twice"),
        (lambda pool, block: (pool.unpin(0, block), pool.pin(0, block)), "although it is free"),
        (lambda pool, block: (pool.keep(0, block), pool.keep(0, block)), "a second time"),
        (lambda pool, block: pool.forget(0, block), "in which it is not"),
    ],
)
def test_mistakes_are_loud(act, message: str) -> None:
    pool = pool_of(2)
    with pytest.raises(IntegrityError, match=message):
        act(pool, pool.take(0))


@pytest.mark.parametrize("seed", range(30))
def test_counts_survive_any_life_and_promises_are_kept(seed: int) -> None:
    """Random takes, pins, unpins, keeps and forgets; then what ``fits`` says is had by giving up all that is idle."""
    rng = random.Random(seed)
    pool = pool_of(*rng.choice([(1,), (3,), (1, 4), (2, 3), (1, 2, 6)]), n_sectors=rng.randint(3, 9))
    n_groups = len(pool.per_sector)
    pinned: list[tuple[int, int]] = []
    idle: set[tuple[int, int]] = set()
    for _ in range(120):
        act = rng.random()
        group = rng.randrange(n_groups)
        if act < 0.45 and pool.has_free(group):
            pinned.append((group, pool.take(group)))
        elif act < 0.55 and idle:
            key = rng.choice(sorted(idle))
            pool.pin(*key)
            idle.discard(key)
            pinned.append(key)
        elif act < 0.9 and pinned:
            key = pinned.pop(rng.randrange(len(pinned)))
            if rng.random() < 0.5 and not pool.cached[key[0]][key[1]]:
                pool.keep(*key)
            if pool.unpin(*key):
                idle.add(key)
        elif idle:
            key = rng.choice(sorted(idle))
            idle.discard(key)
            pool.forget(*key)
        pool.check()
    wanted = [rng.randrange(6) for _ in range(n_groups)]
    promised = pool.fits(wanted)
    for key in idle:
        pool.forget(*key)
    free_sectors = pool.layout.n_sectors - 1 - len({(block // pool.per_sector[group]) for group, block in pinned})
    beside = [0] * n_groups
    for group, size in enumerate(pool.per_sector):
        mine = {block // size for g, block in pinned if g == group}
        beside[group] = len(mine) * size - len({block for g, block in pinned if g == group})
    short = [max(0, want - have) for want, have in zip(wanted, beside, strict=True)]
    needed = sum(-(-count // size) for count, size in zip(short, pool.per_sector, strict=True))
    assert promised == (needed <= free_sectors)
    if promised:
        for group, count in enumerate(wanted):
            for _ in range(count):
                pool.take(group)
        pool.check()
