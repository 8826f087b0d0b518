"""What is given up first when blocks are worth different things to those who computed them."""

from __future__ import annotations

from headrace.cache.arena import TierSizes, arena_for_tokens
from headrace.cache.groups import group_layers
from headrace.cache.manager import CacheManager, CacheOptions
from headrace.cache.specs import CacheSpec, FullKV, SlidingKV
from headrace.core.clock import VirtualClock
from headrace.core.outputs import MissReason
from headrace.core.retention import USUAL_ASKS, Ask, Asks

FULL = FullKV(1, 16, 2)


class Cache:
    """An arena for ``blocks`` blocks of each group, and a clock."""

    def __init__(self, *specs: CacheSpec, blocks: int = 6, **options: object) -> None:
        self.clock = VirtualClock()
        groups = group_layers(specs or (FULL,))
        arena = arena_for_tokens(groups, 32 * blocks)
        self.manager = CacheManager(groups, arena, CacheOptions(**options), self.clock)

    def run(self, first: int, n_tokens: int = 64, asks: Asks = USUAL_ASKS) -> int:
        """A sequence of a text that begins with token ``first``; how many of its tokens were found."""
        manager, tokens = self.manager, list(range(first, first + n_tokens))
        hit = manager.lookup(None, tokens, n_tokens - 1)
        placement = manager.place(0, hit, tokens, n_tokens, asks)
        if placement.sources is not None:
            manager.drop(placement.sources)
        manager.commit(placement.lease, tokens, n_tokens)
        manager.retire(placement.lease)
        manager.check_integrity()
        return hit.length

    def has(self, first: int, n_tokens: int = 64) -> int:
        """Whole blocks that are there of it."""
        return self.manager.lookup(None, list(range(first, first + n_tokens + 1)), n_tokens).length // 32


def always(priority: int, seconds: float | None = None) -> Asks:
    return Asks((), Ask(priority, seconds))


def test_the_lowest_priority_goes_first_and_then_the_oldest() -> None:
    cache = Cache()
    cache.run(1000, asks=always(80))
    cache.run(2000)
    cache.run(3000, asks=always(0))
    cache.run(4000, 32)
    assert [cache.has(first) for first in (1000, 2000, 3000)] == [2, 2, 1], "thrown away before what is older"
    cache.run(5000)
    assert [cache.has(first) for first in (1000, 2000, 3000)] == [2, 1, 0]
    cache.run(6000, 96)
    assert [cache.has(first) for first in (1000, 2000, 3000)] == [2, 0, 0]
    assert cache.manager.counters["prioritised_blocks"] == 4


def test_everything_can_be_given_up_for_those_who_run() -> None:
    cache = Cache()
    cache.run(1000, 192, always(100))
    cache.run(2000, 192)
    assert (cache.has(1000, 192), cache.has(2000, 192)) == (0, 6)


def test_a_shared_block_is_worth_what_the_last_to_care_asked_for() -> None:
    cache = Cache(blocks=4)
    cache.run(1000, asks=always(0))
    cache.run(1000)
    cache.run(2000, asks=always(0))
    cache.run(3000, 32)
    assert (cache.has(1000), cache.has(2000)) == (2, 1), "somebody to whom it is worth the usual has used it"
    cache.run(1000, asks=always(90))
    cache.run(1000, asks=always(5))
    cache.run(4000, 64)
    assert cache.has(1000) == 2, "who cares less takes nothing away"


def test_a_beginning_is_kept_with_what_follows_it() -> None:
    cache = Cache(blocks=5)
    cache.run(1000, 32)
    cache.run(1000, 96, always(70))
    cache.run(2000)
    cache.run(3000)
    assert cache.has(1000, 96) == 3


def test_a_priority_lasts_as_long_as_was_said_after_the_last_use() -> None:
    cache = Cache(blocks=4)
    cache.run(1000, asks=always(80, 10.0))
    cache.clock.advance(6)
    cache.run(1000, asks=always(80, 10.0))
    cache.clock.advance(6)
    cache.run(2000)
    cache.run(3000)
    assert cache.has(1000) == 2
    cache.clock.advance(6)
    cache.run(4000, 32)
    assert (cache.has(1000), cache.has(3000)) == (1, 2), "the oldest of those that are worth the usual"


def test_when_time_is_over_what_comes_after_still_counts() -> None:
    cache = Cache(blocks=5)
    cache.run(1000, 32, always(90, 1.0))
    cache.run(1000, 96, always(60))
    cache.clock.advance(2)
    cache.run(2000, 64)
    cache.run(3000, 64)
    assert cache.has(1000, 96) == 3
    assert cache.manager.index.oldest is not None


def test_what_fell_out_of_a_window_is_kept_if_somebody_wants_it() -> None:
    sliding = SlidingKV(1, 16, 2, 33)
    cache = Cache(FULL, sliding, blocks=8)
    cache.run(1000, 160, Asks((Ask(80), Ask(80)), Ask()))
    cache.run(2000, 160)
    cache.run(3000, 160)
    assert cache.has(1000) == 2, "others can go on after the first two blocks"
    plain = Cache(FULL, sliding, blocks=8)
    plain.run(1000, 160)
    plain.run(2000, 160)
    plain.run(3000, 160)
    assert plain.has(1000) == 0


def test_the_tiers_keep_what_is_worth_most() -> None:
    cache = Cache(blocks=2, tiers=TierSizes(2, 2))
    cache.run(1000, asks=always(80))
    for first in (2000, 3000, 4000):
        cache.run(first)
    stats = cache.manager.tiers.stats()
    assert (stats["hostBlocks"], stats["diskBlocks"]) == (2, 0), "what is worth less pushes nothing out"
    assert (cache.has(1000), cache.has(3000)) == (2, 0)
    cache.run(5000, asks=always(90))
    cache.run(6000)
    found = [cache.manager.lookup(None, list(range(first, first + 65)), 64, with_disk=True) for first in (1000, 5000)]
    assert [hit.length for hit in found] == [64, 64]
    assert [[kept.on_disk for kept in hit.below()] for hit in found] == [[True, True], [False, False]]


def test_what_is_worth_little_is_not_offloaded() -> None:
    cache = Cache(blocks=2, tiers=TierSizes(6, 0), min_offload_priority=50)
    cache.run(1000)
    cache.run(2000, asks=always(50))
    cache.run(3000)
    assert cache.manager.tiers.stats()["hostBlocks"] == 2
    assert cache.manager.lookup(None, list(range(1000, 1065)), 64).miss is MissReason.EVICTED
    assert cache.has(2000) == 2


def test_what_somebody_wants_goes_to_the_host_although_a_window_has_left_it() -> None:
    def found(asks: Asks) -> int:
        cache = Cache(FULL, SlidingKV(1, 16, 2, 33), blocks=3, tiers=TierSizes(30, 0))
        cache.run(1000, 96, asks)
        cache.run(2000, 96)
        cache.run(3000, 96)
        return cache.has(1000, 32)

    assert (found(always(80)), found(USUAL_ASKS)) == (1, 0)


def test_on_the_host_too_a_priority_ends_with_its_time() -> None:
    cache = Cache(blocks=2, tiers=TierSizes(2, 0))
    cache.run(1000, asks=always(80, 10.0))
    cache.run(2000)
    assert cache.has(1000) == 2
    cache.clock.advance(20)
    cache.run(3000)
    assert (cache.has(1000), cache.has(2000)) == (0, 2)
