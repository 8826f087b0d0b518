"""Specs, groups and the cut of the arena."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.cache.arena import NO_ARENA, arena_for_tokens, plan_arena
from headrace.cache.groups import group_layers
from headrace.cache.specs import ChunkedKV, FullKV, LatentKV, SlidingKV, blocks_of
from headrace.core.errors import ConfigError

FULL = FullKV(n_kv_heads=2, head_dim=16, itemsize=2)
SLIDING = SlidingKV(n_kv_heads=2, head_dim=16, itemsize=2, window=40)


def test_bytes_count_keys_and_values_of_their_own_width() -> None:
    assert FULL.bytes_per_block == 32 * 2 * (16 + 16) * 2
    assert FullKV(2, 192, 4, v_head_dim=128).bytes_per_block == 32 * 2 * (192 + 128) * 4


def test_numbers_of_one_byte_have_scales_beside_them_and_keys_lie_in_fours() -> None:
    assert FullKV(2, 192, 1, v_head_dim=127).bytes_per_block == 32 * 2 * (192 + 127 + 2 * 4)
    assert SlidingKV(3, 50, 1, window=40).bytes_per_block == 32 * 3 * (52 + 50 + 2 * 4)
    assert LatentKV(26, 6, 1).bytes_per_block == 32 * (28 + 8 + 2 * 4)


@pytest.mark.parametrize(("length", "first"), [(0, 0), (39, 0), (70, 0), (71, 32), (102, 32), (103, 64)])
def test_a_sliding_resume_needs_the_window_of_its_next_row(length: int, first: int) -> None:
    """Row ``length`` reads from length - 39 on; blocks begin at multiples of 32."""
    assert SLIDING.needed_from(length) == first
    assert FULL.needed_from(length) == 0


@pytest.mark.parametrize(("length", "first"), [(0, 0), (39, 0), (40, 32), (79, 32), (80, 64), (120, 96), (319, 256)])
def test_a_chunked_resume_needs_what_there_is_of_the_chunk_of_its_next_row(length: int, first: int) -> None:
    """Chunks of 40 begin at 40, 80, 120 ... 280; blocks at multiples of 32."""
    assert ChunkedKV(2, 16, 2, chunk=40).needed_from(length) == first


@settings(deadline=None)
@given(window=st.integers(1, 200), chunk=st.integers(1, 200), length=st.integers(1, 400), rows=st.integers(1, 100))
def test_a_window_is_the_narrower_of_what_there_was_and_what_is_set(
    window: int, chunk: int, length: int, rows: int
) -> None:
    chunks = ChunkedKV(1, 16, 2, chunk)
    specs = [FullKV(1, 16, 2), SlidingKV(1, 16, 2, 40), chunks, LatentKV(4, 2, 2), LatentKV(4, 2, 2, window=50)]
    for spec in specs:
        narrow = spec.within(window)
        assert (narrow == spec) == all(narrow.reads_from(at) == spec.reads_from(at) for at in range(500))
        assert not narrow.keeps_all
        held = 0
        for start in range(length):
            assert narrow.reads_from(start) == max(spec.reads_from(start), start - window + 1)
            assert narrow.needed_from(start) == narrow.reads_from(start) // 32 * 32
            held = max(held, blocks_of(min(length, start + rows)) - narrow.needed_from(start) // 32)
        assert held <= narrow.peak_blocks(length, rows) <= spec.peak_blocks(length, rows)


@given(chunk=st.integers(1, 200), length=st.integers(1, 400), rows=st.integers(1, 100))
def test_the_peak_of_a_chunked_group_is_the_most_it_ever_holds(chunk: int, length: int, rows: int) -> None:
    spec = ChunkedKV(1, 16, 2, chunk)
    held = [blocks_of(min(length, start + rows)) - spec.needed_from(start) // 32 for start in range(length)]
    assert (
        max(held)
        <= spec.peak_blocks(length, rows)
        <= 1 + max(blocks_of(start + rows) - spec.needed_from(start) // 32 for start in range(32 * chunk))
    )


@given(window=st.integers(1, 200), length=st.integers(1, 400), rows=st.integers(1, 100))
def test_the_peak_of_a_sliding_group_is_the_most_it_ever_holds(window: int, length: int, rows: int) -> None:
    spec = SlidingKV(1, 16, 2, window)
    held = 0
    for start in range(length):
        end = min(length, start + rows)
        held = max(held, blocks_of(end) - spec.needed_from(start) // 32)
    assert held <= spec.peak_blocks(length, rows) <= held + 1


def test_a_window_holds_at_least_the_row_itself() -> None:
    with pytest.raises(ConfigError, match="window of 0"):
        SlidingKV(1, 16, 2, window=0)
    with pytest.raises(ConfigError, match="chunks of 0"):
        ChunkedKV(1, 16, 2, chunk=0)


def test_equal_specs_share_a_group() -> None:
    groups = group_layers([SLIDING, SLIDING, FULL, SLIDING, FULL])
    assert [group.layers for group in groups] == [(0, 1, 3), (2, 4)]
    assert [group.block_bytes for group in groups] == [3 * 32 * 128, 2 * 32 * 128]
    assert group_layers([]) == ()
    assert arena_for_tokens((), 100) == NO_ARENA


def test_sectors_hold_whole_blocks_of_every_group() -> None:
    """Five sliding layers for each full one: a sector is one large block or five small ones."""
    layout = plan_arena(group_layers([SLIDING] * 5 + [FULL]), budget_bytes=10 * 5 * 4096 + 17)
    assert layout.sector_bytes == 5 * 4096
    assert [group.blocks_per_sector for group in layout.groups] == [1, 5]
    assert layout.n_sectors == 10
    assert (layout.n_blocks(0), layout.n_blocks(1)) == (10, 50)
    assert layout.nbytes == 10 * 5 * 4096


def test_sectors_of_two_and_three_layers_are_their_common_multiple() -> None:
    layout = plan_arena(group_layers([SLIDING] * 2 + [FULL] * 3), budget_bytes=1 << 20)
    assert layout.sector_bytes == 6 * 4096
    assert [group.blocks_per_sector for group in layout.groups] == [3, 2]


@given(
    layers=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    heads=st.lists(st.sampled_from([1, 2, 4, 8]), min_size=4, max_size=4),
    dims=st.lists(st.sampled_from([64, 80, 96, 128, 256]), min_size=4, max_size=4),
)
def test_any_mix_of_sizes_fits_and_wastes_little(layers: list[int], heads: list[int], dims: list[int]) -> None:
    specs = [SlidingKV(heads[g], dims[g], 2, window=g + 1) for g, count in enumerate(layers) for _ in range(count)]
    groups = group_layers(specs)
    layout = plan_arena(groups, 1 << 34)
    for group, cut in zip(groups, layout.groups, strict=True):
        assert cut.block_bytes == group.block_bytes <= cut.stride_bytes
        assert cut.stride_bytes * cut.blocks_per_sector == layout.sector_bytes
        assert cut.stride_bytes % 64 == 0
    needed, taken = (sum(getattr(cut, name) for cut in layout.groups) for name in ("block_bytes", "stride_bytes"))
    assert taken <= 1.1 * needed


def test_an_arena_for_tokens_holds_them_in_every_group() -> None:
    groups = group_layers([SLIDING] * 5 + [FULL])
    layout = arena_for_tokens(groups, 330)
    # 11 blocks: 11 sectors of one large block, 3 of five small ones, and the null sector.
    assert layout.n_sectors == 11 + 3 + 1


def test_an_arena_too_small_says_what_is_needed() -> None:
    groups = group_layers([FULL])
    with pytest.raises(ConfigError, match=r"5,000 bytes.*least is 8,192"):
        plan_arena(groups, 5000)
    with pytest.raises(ConfigError, match="max_tokens must be at least 1"):
        arena_for_tokens(groups, 0)
