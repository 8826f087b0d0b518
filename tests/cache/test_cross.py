"""Blocks of encoded media: shared by content, given up in their turn, and never mixed up with those of tokens."""

from __future__ import annotations

import random

import pytest

from headrace.cache.arena import arena_for_tokens, plan_arena
from headrace.cache.groups import CacheGroup, group_layers
from headrace.cache.lease import BlockLease
from headrace.cache.manager import CacheManager, CacheOptions, Placement
from headrace.cache.specs import CrossKV, FullKV, blocks_of
from headrace.core.media import EncodedMedia, MediaItem

SPECS = [CrossKV(2, 8, 4), FullKV(2, 8, 4), CrossKV(2, 8, 4), FullKV(2, 8, 4)]


def groups() -> tuple[CacheGroup, ...]:
    return group_layers(SPECS)


def media(*names: str, n: int = 40) -> EncodedMedia:
    return EncodedMedia(
        tuple(MediaItem("image", f"{name} of {n}".encode(), i, 1, n, {}) for i, name in enumerate(names))
    )


def manager(n_tokens: int = 256, **options: bool) -> CacheManager:
    return CacheManager(groups(), arena_for_tokens(groups(), n_tokens), CacheOptions(**options))


def place(cache: CacheManager, tokens: list[int], seen: EncodedMedia | None, salt: str | None = None) -> Placement:
    hit = cache.lookup(salt, tokens, len(tokens) - 1, seen)
    assert cache.can_place(hit, len(tokens))
    made = cache.place(0, hit, tokens, len(tokens))
    cache.commit(made.lease, tokens, len(tokens))
    cache.check_integrity()
    return made


def held(lease: BlockLease) -> list[int]:
    assert lease.media is not None
    return list(lease.media.blocks[1])


def test_groups_of_tokens_come_first() -> None:
    assert [(group.spec.of_tokens, group.layers) for group in groups()] == [(True, (1, 3)), (False, (0, 2))]


def test_the_same_media_are_encoded_once_and_found_by_content_and_salt() -> None:
    cache = manager(1024)
    first = place(cache, list(range(40)), media("a", "b"))
    assert first.encodes
    assert [(update.group, len(update.blocks)) for update in first.updates] == [(0, 2), (1, blocks_of(80))]
    second = place(cache, list(range(500, 540)), media("a", "b"))
    assert not second.encodes
    assert held(second.lease) == held(first.lease)
    others = [place(cache, [9], media("b", "a")), place(cache, [9], media("a", "b"), salt="x")]
    assert all(other.encodes for other in others)
    blocks = [block for one in (first, *others) for block in held(one.lease)]
    assert len(set(blocks)) == len(blocks)
    for one in (first, second, *others):
        cache.retire(one.lease)
    cache.check_integrity()
    assert not place(cache, [9], media("a", "b")).encodes
    assert cache.counters["reused_media"] == 2


def test_without_reuse_nothing_is_shared_or_kept() -> None:
    cache = manager(1024, block_reuse=False)
    one, two = place(cache, [1, 2], media("a")), place(cache, [1, 2], media("a"))
    assert one.encodes
    assert two.encodes
    assert set(held(one.lease)).isdisjoint(held(two.lease))
    for made in (one, two):
        cache.retire(made.lease)
    cache.check_integrity()
    assert cache.stats()["usedNumBlocks"] == 0


def test_what_was_used_longest_ago_is_given_up_first_media_or_text() -> None:
    cache = manager(96)
    old_media = place(cache, [1, 2], media("a", n=32))
    cache.retire(old_media.lease)
    text = place(cache, list(range(100, 164)), None)
    cache.retire(text.lease)
    new_media = place(cache, [3, 4], media("b", n=32))
    cache.retire(new_media.lease)
    # Six blocks hold all that, two of them free: part of a block of text is not kept.
    big = place(cache, list(range(300, 396)), None)
    assert cache.lookup(None, [1, 2], 1, media("a", n=32)).cross.entry is None
    assert cache.lookup(None, [3, 4], 1, media("b", n=32)).cross.entry is not None
    # The text is older than what is left of the media.
    more = place(cache, [7], None)
    assert cache.lookup(None, [3, 4], 1, media("b", n=32)).cross.entry is not None
    assert cache.lookup(None, list(range(100, 164)), 63).length < 63
    cache.retire(more.lease)
    cache.retire(big.lease)
    cache.evict_all()
    cache.check_integrity()
    assert cache.stats()["usedNumBlocks"] == 0
    assert cache.lookup(None, [3, 4], 1, media("b", n=32)).cross.entry is None


def test_media_that_do_not_fit_are_counted_before_anything_is_taken() -> None:
    cache = manager(64)
    assert cache.longest_alone(200, 1) == 128
    assert cache.longest_alone(200, 1, media("a", n=64)) == 64
    assert cache.longest_alone(200, 1, media("a", n=129)) == 0
    runs = place(cache, list(range(64)), None)
    hit = cache.lookup(None, [900], 0, media("a", n=64))
    assert not cache.can_place(hit, 1)
    assert not cache.can_hold(hit, 1, 1)
    assert cache.furthest_place(hit, 1) == 0
    cache.retire(runs.lease)
    assert cache.can_place(hit, 32)


@pytest.mark.parametrize("keeps", [True, False])
def test_a_thousand_random_lives_balance(keeps: bool) -> None:
    rng = random.Random(4)
    cache = CacheManager(groups(), plan_arena(groups(), 80 * 4096), CacheOptions(block_reuse=keeps))
    running: list[BlockLease] = []
    n_shared = 0
    for turn in range(1000):
        while running and rng.random() < 0.6:
            cache.retire(running.pop(rng.randrange(len(running))))
        tokens = [rng.randrange(3) * 1000 + i for i in range(rng.randrange(1, 90))]
        seen = media(*rng.choice(("a", "b", "ab")), n=rng.choice((5, 40))) if rng.random() < 0.7 else None
        hit = cache.lookup(rng.choice((None, None, "x")), tokens, len(tokens) - 1, seen)
        if cache.can_place(hit, len(tokens)):
            made = cache.place(0, hit, tokens, len(tokens))
            n_shared += seen is not None and not made.encodes
            cache.commit(made.lease, tokens, len(tokens))
            running.append(made.lease)
            if made.sources is not None:
                cache.drop(made.sources)
        if turn % 20 == 0:
            cache.check_integrity()
    for lease in running:
        cache.retire(lease)
    cache.check_integrity()
    assert (n_shared > 50) is keeps
    cache.evict_all()
    assert cache.stats()["usedNumBlocks"] == 0
