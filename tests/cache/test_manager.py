"""Hits, copies, windows, promises and evictions of the cache, without a scheduler."""

from __future__ import annotations

import pytest

from headrace.cache.arena import arena_for_tokens
from headrace.cache.groups import group_layers
from headrace.cache.lease import BlockLease
from headrace.cache.manager import CacheManager, CacheOptions
from headrace.cache.prefix_index import PrefixIndex, chain_key
from headrace.cache.specs import CacheSpec, ChunkedKV, FullKV, RecurrentState, SlidingKV
from headrace.core.errors import IntegrityError
from headrace.core.outputs import MissReason
from headrace.core.plan import BlockCopy

FULL = FullKV(1, 16, 2)


def sliding(window: int) -> SlidingKV:
    return SlidingKV(1, 16, 2, window)


def cache(*specs: CacheSpec, tokens: int = 640, **options: int) -> CacheManager:
    groups = group_layers(specs or (FULL,))
    return CacheManager(groups, arena_for_tokens(groups, tokens), CacheOptions(**options))


def text(n: int, start: int = 100) -> list[int]:
    return list(range(start, start + n))


def run(manager: CacheManager, tokens: list[int], salt: str | None = None, limit: int | None = None) -> BlockLease:
    """A sequence that is admitted and computed to its end."""
    hit = manager.lookup(salt, tokens, len(tokens) - 1 if limit is None else limit)
    assert manager.can_place(hit, len(tokens))
    placement = manager.place(0, hit, tokens, len(tokens))
    if placement.sources is not None:
        manager.drop(placement.sources)
    manager.commit(placement.lease, tokens, len(tokens))
    manager.check_integrity()
    return placement.lease


def test_a_prefix_is_found_again_and_one_token_is_always_computed() -> None:
    manager = cache()
    manager.retire(run(manager, text(96)))
    hit = manager.lookup(None, text(96), 95)
    assert (hit.length, hit.n_whole, hit.partial_tokens, hit.miss) == (95, 2, 31, None)
    hit = manager.lookup(None, [*text(96), 1], 96)
    assert (hit.length, hit.n_whole, hit.partial_tokens, hit.miss) == (96, 3, 0, None)
    assert hit.blocks == [[1, 2, 3]]


def test_a_prefix_that_ends_inside_a_block_is_copied_from_the_child_that_shares_most() -> None:
    manager = cache()
    for tail in (5, 20, 12):
        manager.retire(run(manager, text(32) + text(tail, 132) + text(40, 1000 * tail)))
    wanted = text(32) + text(18, 132) + [7] * 20
    before = manager.counters["partial_reuse_tokens"]
    hit = manager.lookup(None, wanted, len(wanted) - 1)
    assert (hit.length, hit.n_whole, hit.miss) == (50, 1, MissReason.NO_ENTRY)
    source = hit.source.blocks[0]
    placement = manager.place(3, hit, wanted, len(wanted))
    target = placement.updates[0].blocks[1]
    assert placement.copies == (BlockCopy(0, source, target),)
    assert manager.pool.pins[0][source] == 1, "the source is held until the copy has been made"
    assert manager.pool.pins[0][target] == 1
    manager.drop(placement.sources)
    assert manager.pool.pins[0][source] == 0
    manager.check_integrity()
    assert manager.counters["partial_reuse_tokens"] == before + 18


def test_partial_reuse_can_be_switched_off() -> None:
    manager = cache(partial_reuse=False)
    manager.retire(run(manager, text(96)))
    hit = manager.lookup(None, text(96), 95)
    assert (hit.length, hit.source, hit.miss) == (64, None, None)


def test_reuse_can_be_switched_off() -> None:
    manager = cache(block_reuse=False)
    manager.retire(run(manager, text(96)))
    hit = manager.lookup(None, text(96), 95)
    assert (hit.length, hit.miss) == (0, MissReason.DISABLED)
    assert manager.pool.n_open == manager.layout.n_sectors - 1


def test_salts_do_not_see_each_other() -> None:
    manager = cache()
    manager.retire(run(manager, text(64), salt="a"))
    for other in (None, "b", ""):
        hit = manager.lookup(other, text(64), 63)
        assert (hit.length, hit.miss) == (0, MissReason.NO_ENTRY)
    assert manager.lookup("a", text(64), 63).length == 63


def test_a_sliding_layer_needs_its_window_only() -> None:
    """Both groups have all 10 blocks in the index; a resume at 300 shares the full layer's 9 and the window's 2."""
    manager = cache(FULL, sliding(40))
    lease = run(manager, text(320))
    assert lease.first == [0, 8]
    assert manager.counters["blocks_freed_out_of_window"] == 8
    manager.retire(lease)
    hit = manager.lookup(None, [*text(300), 1, 2], 301)
    assert (hit.length, hit.first, [len(row) for row in hit.blocks]) == (300, [0, 8], [9, 1])


def test_a_chunked_layer_needs_the_chunk_of_the_next_row_only() -> None:
    """Chunks of 64: at 320 a chunk begins and nothing before it is read; a resume at 300 reads from 256 on."""
    manager = cache(FULL, ChunkedKV(1, 16, 2, 64))
    lease = run(manager, text(320))
    assert lease.first == [0, 10]
    manager.retire(lease)
    hit = manager.lookup(None, [*text(300), 1, 2], 301)
    assert (hit.length, hit.first, [len(row) for row in hit.blocks]) == (300, [0, 8], [9, 1])
    hit = manager.lookup(None, [*text(320), 1, 2], 321)
    assert (hit.length, hit.first, [len(row) for row in hit.blocks]) == (320, [0, 10], [10, 0])
    lease = run(manager, [*text(320), 1, 2])
    assert lease.first == [0, 10]


def test_a_hit_ends_where_every_group_can_resume() -> None:
    manager = cache(FULL, sliding(40), tokens=352)
    manager.retire(run(manager, text(320)))
    # Something else takes the blocks that fell out of the window.
    for _ in range(manager.counters["blocks_freed_out_of_window"]):
        manager.index.evict(1)
    hit = manager.lookup(None, text(200), 199)
    assert (hit.length, hit.miss) == (0, MissReason.OUT_OF_WINDOW)
    assert manager.lookup(None, text(320), 319).length == 319


def test_blocks_that_fell_out_of_a_window_go_first_and_chains_go_from_their_ends() -> None:
    manager = cache(FULL, sliding(40), tokens=320)
    manager.retire(run(manager, text(160)))
    n_stale = manager.counters["blocks_freed_out_of_window"]
    assert n_stale == 3
    for _ in range(n_stale):
        manager.index.evict(0)
        assert manager.lookup(None, text(160), 159).length == 159
    lengths = []
    while manager.index.evict(0):
        lengths.append(manager.lookup(None, text(160), 160).length)
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] == 0
    manager.check_integrity()


def test_the_least_recently_used_goes_first() -> None:
    manager = cache()
    for start in (1000, 2000, 3000):
        manager.retire(run(manager, text(64, start)))
    manager.retire(run(manager, text(64, 1000)))
    manager.index.evict(0)
    manager.index.evict(0)
    found = [manager.lookup(None, text(65, start), 64).length for start in (1000, 2000, 3000)]
    assert found == [64, 0, 64]
    assert manager.lookup(None, text(65, 2000), 64).miss is MissReason.EVICTED


def test_a_running_sequence_keeps_its_prefix() -> None:
    manager = cache(tokens=160)
    manager.retire(run(manager, text(64)))
    lease = run(manager, text(96))
    manager.evict_all()
    assert manager.lookup(None, text(97), 96).length == 96
    manager.retire(lease)
    manager.evict_all()
    assert manager.lookup(None, text(97), 96).length == 0


def test_a_colliding_key_costs_a_hit_and_never_an_answer() -> None:
    manager = cache()
    manager.index = PrefixIndex(
        group_layers([FULL]),
        manager.pool,
        manager.tiers,
        True,
        key_of=lambda parent, tokens: b"same",
        counters=manager.counters,
    )
    manager.retire(run(manager, text(64)))
    assert manager.lookup(None, text(65), 64).length == 32, "the second block's key was taken"
    assert manager.lookup(None, text(65, 500), 64).length == 0
    manager.retire(run(manager, text(64, 500)))
    manager.check_integrity()
    assert manager.lookup(None, text(65), 64).length == 32


def test_keys_are_chained() -> None:
    block = tuple(text(32))
    assert chain_key(b"a", block) != chain_key(b"b", block)
    assert chain_key(b"a", block) != chain_key(b"a", (*block[:-1], 0))
    assert len(chain_key(b"a", block)) == 16


def test_a_block_that_is_being_computed_is_awaited_until_it_is_there_or_will_not_come() -> None:
    manager = cache()
    tokens = text(96)
    first = manager.place(0, manager.lookup(None, tokens, 95), tokens, 64)
    hit = manager.lookup(None, tokens, 95)
    assert hit.length == 0
    assert hit.awaited is not None
    assert manager.lookup(None, text(31), 30).awaited is None, "no whole block of it is computed"
    manager.commit(first.lease, tokens, 32)
    assert manager.index.take_resolved() == [hit.awaited]
    hit = manager.lookup(None, tokens, 95)
    assert (hit.length, hit.awaited is None) == (32, False)
    manager.retire(first.lease)
    assert manager.index.take_resolved() == [hit.awaited]
    assert manager.lookup(None, tokens, 95).awaited is None


def test_a_twin_that_nobody_uses_makes_room_for_the_one_in_use() -> None:
    """64 tokens again: the second block is a copy of the first 31 tokens, and then the same as the one in the index."""
    manager = cache()
    manager.retire(run(manager, text(64)))
    free = manager.pool.n_open
    lease = run(manager, text(64))
    assert manager.index.n_entries == 2
    assert manager.pool.n_open == free - 2, "the older twin is free again: two blocks are held, and no others cached"
    manager.retire(lease)
    assert manager.pool.n_open == manager.layout.n_sectors - 1


def test_a_lease_lives_until_its_last_holder_lets_go() -> None:
    manager = cache(block_reuse=False)
    placement = manager.place(0, manager.lookup(None, text(40), 39), text(40), 40)
    placement.lease.hold()
    manager.retire(placement.lease)
    assert (manager.n_limbo, manager.n_leases) == (1, 1)
    manager.check_integrity()
    manager.drop(placement.lease)
    assert (manager.n_limbo, manager.n_leases) == (0, 0)
    manager.check_integrity()


def test_asking_changes_nothing_and_doing_what_was_not_promised_is_loud() -> None:
    manager = cache(tokens=96)
    lease = run(manager, text(64))
    before = (manager.pool.n_open, list(manager.pool.pins[0]), manager.index.n_entries)
    hit = manager.lookup(None, text(64, 500), 63)
    assert not manager.can_place(hit, 64)
    assert manager.furthest_place(hit, 64) == 32
    assert manager.rows_that_fit(lease, 64, 100) == 32
    assert not manager.can_hold(hit, 64, 1)
    assert before == (manager.pool.n_open, list(manager.pool.pins[0]), manager.index.n_entries)
    with pytest.raises(IntegrityError, match="promised"):
        manager.place(0, hit, text(64, 500), 64)


def test_the_integrity_check_sees_what_is_wrong() -> None:
    """Each fault is planted in a healthy cache."""

    def fresh() -> tuple[CacheManager, BlockLease]:
        manager = cache(FULL, sliding(40))
        lease = run(manager, text(96))
        manager.check_integrity()
        return manager, lease

    def pin_too_many(manager: CacheManager, lease: BlockLease) -> None:
        manager.pool.pin(0, lease.blocks[0][0])

    def block_in_two_leases(manager: CacheManager, lease: BlockLease) -> None:
        other = manager.place(1, manager.lookup("x", text(40), 39), text(40), 40).lease
        other.blocks[0][0] = lease.blocks[0][0]

    def lease_forgotten(manager: CacheManager, lease: BlockLease) -> None:
        manager._leases.remove(lease)

    def index_forgets(manager: CacheManager, lease: BlockLease) -> None:
        lease.node.blocks[0] = 0

    def free_twice(manager: CacheManager, lease: BlockLease) -> None:
        manager.pool._free_sectors.append(manager.pool._free_sectors[0])

    def limbo(manager: CacheManager, lease: BlockLease) -> None:
        manager.n_limbo += 1

    for plant in (pin_too_many, block_in_two_leases, lease_forgotten, index_forgets, free_twice, limbo):
        manager, lease = fresh()
        plant(manager, lease)
        with pytest.raises(IntegrityError):
            manager.check_integrity()


def test_statistics_carry_the_names_of_the_reference() -> None:
    manager = cache()
    manager.retire(run(manager, text(96)))
    manager.retire(run(manager, [*text(96), 1]))
    stats = manager.stats()
    assert stats["maxNumBlocks"] == 20
    assert stats["usedNumBlocks"] == 0
    assert (stats["reusedBlocks"], stats["missedBlocks"], stats["cacheHitRate"]) == (3, 3, 0.5)
    assert (stats["allocTotalBlocks"], stats["allocNewBlocks"]) == (7, 4)


def test_a_state_is_resumed_where_a_block_ends_and_nowhere_else() -> None:
    manager = cache(FULL, RecurrentState(64))
    manager.retire(run(manager, text(100)))
    hit = manager.lookup(None, [*text(90), 1, 2, 3], 92)
    assert (hit.length, hit.partial_tokens, hit.source) == (64, 0, None)
    # All keys before it, and the one state that the tokens so far have led to.
    assert ([len(blocks) for blocks in hit.blocks], hit.first) == ([2, 1], [0, 1])
    assert manager.lookup(None, text(100), 99).length == 96
    assert manager.lookup(None, text(31), 30).length == 0


def test_of_the_states_left_behind_the_newest_is_the_last_to_be_given_up() -> None:
    manager = cache(FULL, RecurrentState(64), checkpoint_tokens=32)
    manager.retire(run(manager, text(100)))
    for given_up, found in ((1, 96), (2, 96), (3, 0)):
        manager.pool.check()
        assert manager.index.evict(1)
        manager.check_integrity()
        assert manager.lookup(None, text(100), 99).length == found, given_up


def lengths_found(manager: CacheManager, tokens: list[int]) -> list[int]:
    """Where ``tokens``, cut after so many blocks, are resumed."""
    return [manager.lookup(None, [*tokens[:cut], 1], cut).length for cut in range(32, len(tokens) + 1, 32)]


@pytest.mark.parametrize("rows", [1, 7, 32, 50, 500])
@pytest.mark.parametrize(
    ("interval", "kept"), [(32, [32, 64, 96, 128, 160, 192, 224]), (64, [64, 128, 192]), (96, [96, 192])]
)
def test_states_are_kept_at_intervals_and_at_the_end(rows: int, interval: int, kept: list[int]) -> None:
    """However many rows a step has; the last one is the state of the block that was whole last."""
    manager, tokens = cache(FULL, RecurrentState(64), checkpoint_tokens=interval), text(234)
    lease = manager.place(0, manager.lookup(None, tokens, 233), tokens, 0).lease
    for first in range(0, len(tokens), rows):
        last = min(first + rows, len(tokens))
        manager.grow(0, lease, last)
        manager.commit(lease, tokens, last)
        manager.check_integrity()
    manager.retire(lease)
    manager.check_integrity()
    expected = [max([length for length in (0, *kept, 224) if length <= cut], default=0) for cut in range(32, 225, 32)]
    assert lengths_found(manager, tokens[:224]) == expected
    assert sum(manager.pool.cached[1]) == len({*kept, 224})


def test_the_end_of_a_turn_is_kept_for_other_turns_that_begin_there() -> None:
    manager, first = cache(FULL, RecurrentState(64), checkpoint_tokens=128), text(104)
    manager.retire(run(manager, first))
    second = first[:96] + text(100, 5000)
    manager.retire(run(manager, second))
    assert lengths_found(manager, second[:192]) == [0, 0, 96, 128, 128, 192]
    assert manager.lookup(None, [*first[:96], 7, 8], 97).length == 96
    manager.check_integrity()


def test_a_state_that_somebody_reads_is_not_thinned_out() -> None:
    """Two run through the same tokens; the second holds what the first leaves behind."""
    manager, tokens = cache(FULL, RecurrentState(64), checkpoint_tokens=128), text(160)
    lease = manager.place(0, manager.lookup(None, tokens, 159), tokens, 96).lease
    manager.commit(lease, tokens[:96], 96)
    hit = manager.lookup(None, [*tokens[:96], 1], 96)
    assert hit.length == 96
    other = manager.place(1, hit, [*tokens[:96], 1], 97).lease
    manager.grow(0, lease, 160)
    manager.commit(lease, tokens, 160)
    manager.check_integrity()
    assert other.block_at(1, 2) in manager.index._node_of[1]
    manager.retire(other)
    manager.retire(lease)
    manager.check_integrity()


def test_a_running_sequence_holds_the_state_that_its_next_row_reads() -> None:
    manager = cache(FULL, RecurrentState(64), tokens=320)
    lease = run(manager, text(64))
    # At a border: the checkpoint is read by the next row, whose own state goes to another block.
    assert (lease.first, [len(blocks) for blocks in lease.blocks]) == ([0, 1], [2, 1])
    checkpoint = lease.block_at(1, 1)
    manager.grow(0, lease, 65)
    manager.commit(lease, text(65), 65)
    assert (lease.first[1], len(lease.blocks[1])) == (2, 1)
    assert lease.block_at(1, 2) != checkpoint
    manager.check_integrity()
    manager.retire(lease)
    manager.check_integrity()
