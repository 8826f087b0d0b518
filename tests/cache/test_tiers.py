"""Blocks that go to host and disk and come back: the planned moves, and what happens when one fails."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from headrace import KvCacheConfig
from headrace.cache.arena import TierSizes, arena_for_tokens
from headrace.cache.groups import group_layers
from headrace.cache.manager import CacheManager, CacheOptions
from headrace.cache.specs import FullKV, SlidingKV
from headrace.core.errors import ConfigError
from headrace.core.outputs import MissReason
from headrace.core.plan import BlockMove, MoveKind
from headrace.runner.tiers import BlockFile, BlockMover

FULL = FullKV(1, 16, 2)


def cache(*specs: FullKV | SlidingKV, tokens: int = 96, host: int = 2, disk: int = 0) -> CacheManager:
    groups = group_layers(specs or (FULL,))
    return CacheManager(groups, arena_for_tokens(groups, tokens), CacheOptions(tiers=TierSizes(host, disk)))


def text(n: int, start: int) -> list[int]:
    return list(range(start, start + n))


def run(manager: CacheManager, tokens: list[int]) -> int:
    """A sequence that is admitted, computed and let go; how many of its tokens were cached."""
    hit = manager.lookup(None, tokens, len(tokens) - 1)
    placement = manager.place(0, hit, tokens, len(tokens))
    if placement.sources is not None:
        manager.drop(placement.sources)
    manager.commit(placement.lease, tokens, len(tokens))
    manager.retire(placement.lease)
    manager.check_integrity()
    return hit.length


def kinds(moves: tuple[BlockMove, ...]) -> list[str]:
    return [move.kind.value for move in moves]


def test_what_makes_room_goes_to_the_host_and_comes_back() -> None:
    manager = cache(host=3)
    run(manager, text(96, 100))
    assert manager.take_moves().moves == ()
    run(manager, text(64, 500))
    moves = manager.take_moves().moves
    assert kinds(moves) == ["offload", "offload"]
    assert [move.src for move in moves] == [3, 2], "chains shrink from their ends"
    assert run(manager, text(96, 100)) == 95
    moves = manager.take_moves().moves
    # One block is whole and comes back; the other ends inside the text and is copied from the host.
    assert kinds(moves) == ["offload", "offload", "onboard", "onboard"]
    assert manager.counters["blocks_onboarded"] == 2
    manager.evict_all()
    manager.check_integrity()


def test_a_full_host_tier_gives_up_what_was_used_least_recently_and_says_so() -> None:
    manager = cache(host=1)
    run(manager, text(64, 100))
    run(manager, text(96, 500))
    hit = manager.lookup(None, text(64, 100), 63)
    assert (hit.n_whole, hit.n_below, hit.miss) == (1, [1], MissReason.EVICTED)


def test_the_disk_takes_what_the_host_has_no_room_for_and_a_hit_waits_for_it() -> None:
    manager = cache(host=3, disk=5)
    for start in (100, 300, 500):
        run(manager, text(96, start))
    assert kinds(manager.take_moves().moves) == ["offload"] * 3 + ["spill", "offload"] * 3
    manager.take_resolved()
    assert manager.lookup(None, text(96, 100), 95).length == 0, "without the disk"
    hit = manager.lookup(None, [*text(96, 100), 1], 96, with_disk=True)
    assert hit.length == 96
    assert manager.must_fetch(hit)
    arrival = manager.fetch(hit)
    batch = manager.take_moves()
    assert kinds(batch.moves) == ["spill", "fetch"] * 3
    assert manager.take_resolved() == []
    manager.check_integrity()
    manager.settle(batch, ())
    assert manager.take_resolved() == [arrival]
    manager.check_integrity()
    assert manager.lookup(None, [*text(96, 100), 1], 96).length == 96


def test_a_fetch_does_not_push_out_the_beginning_it_is_to_go_on_from() -> None:
    manager = cache(host=1, disk=5)
    run(manager, text(96, 100))
    run(manager, text(96, 500))
    assert kinds(manager.take_moves().moves) == ["offload", "spill", "offload", "spill", "offload"]
    hit = manager.lookup(None, text(96, 100), 95, with_disk=True)
    assert (hit.n_whole, manager.must_fetch(hit), manager.fetch(hit)) == (2, True, None)
    assert manager.lookup(None, text(96, 100), 95).n_whole == 1
    manager.check_integrity()


@pytest.mark.parametrize("what", [MoveKind.FETCH, MoveKind.SPILL])
def test_what_the_disk_fails_to_give_or_take_is_a_miss(what: MoveKind) -> None:
    manager = cache(host=3, disk=9)
    for start in (100, 300, 500):
        run(manager, text(96, start))
    batch = manager.take_moves()
    if what is MoveKind.FETCH:
        manager.settle(batch, ())
        manager.fetch(manager.lookup(None, text(96, 100), 95, with_disk=True))
        batch = manager.take_moves()
    places = [place for place, move in enumerate(batch.moves) if move.kind is what]
    assert places
    manager.settle(batch, places)
    manager.check_integrity()
    assert manager.counters["disk_failures"] == len(places)
    hit = manager.lookup(None, text(96, 100), 95, with_disk=True)
    assert hit.length < 95
    before = manager.counters["blocks_spilled"]
    run(manager, text(96, 900))
    assert (manager.counters["blocks_spilled"] == before) == (what is MoveKind.SPILL), (
        "no more is written after a failure"
    )


def test_what_fell_out_of_a_window_is_not_kept() -> None:
    manager = cache(FULL, SlidingKV(1, 16, 2, 40), tokens=160, host=40)
    run(manager, text(160, 100))
    run(manager, text(160, 500))
    offloaded = [(move.group, move.src) for move in manager.take_moves().moves]
    assert len([group for group, _ in offloaded if group == 0]) >= 4
    assert len([group for group, _ in offloaded if group == 1]) <= 2


def mover(folder: Path) -> tuple[BlockMover, list[torch.Tensor], BlockFile]:
    arena, host = torch.randn(4, 3, 40).bfloat16(), torch.zeros(4, 3, 40).bfloat16()
    file = BlockFile(folder, [256], 1024)
    return BlockMover([arena], [host], file), [arena, host], file


def _around(place: int) -> list[BlockMove]:
    """Arena block 1 by way of the host to a place on disk, and back to arena block 3."""
    ways = ((MoveKind.OFFLOAD, 1, 2), (MoveKind.SPILL, 2, place), (MoveKind.FETCH, place, 3), (MoveKind.ONBOARD, 3, 3))
    return [BlockMove(kind, 0, src, dst) for kind, src, dst in ways]


def test_a_block_comes_back_from_the_disk_as_it_was(tmp_path: Path) -> None:
    moves, (arena, _), _ = mover(tmp_path)
    assert moves.make(_around(2)) == ()
    assert torch.equal(arena[3], arena[1])
    assert not list(tmp_path.iterdir()), "the file has no name, so nothing is left behind"


def test_a_damaged_or_shortened_file_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    moves, _, file = mover(tmp_path)
    there, back = _around(2)[:2], _around(2)[2:3]
    assert moves.make(there) == ()
    os.pwrite(file._file.fileno(), b"x", 2 * 256 + 17)
    assert moves.make(back) == (0,)
    assert "checksum" in caplog.text
    assert moves.make(back) == (0,), "what was lost once is not there the second time"
    assert moves.make(there) == ()
    os.ftruncate(file._file.fileno(), 2 * 256 + 100)
    assert moves.make(back) == (0,)
    assert "the file ends before it" in caplog.text


def test_a_full_disk_is_noticed_and_what_was_there_before_does_not_come_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves, _, _ = mover(tmp_path)
    assert moves.make(_around(2)[:2]) == ()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    assert moves.make(_around(2)[1:3]) == (0, 1)
    assert "No space left on device" in caplog.text


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"disk_cache_path=.*missing.*No such file"):
        BlockFile(tmp_path / "missing", [256], 1024)
    with pytest.raises(ConfigError, match=r"disk_cache_size: .* are free"):
        BlockFile(tmp_path, [256], 1 << 60)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host_cache_size": 1, "enable_block_reuse": False}, "enable_block_reuse is False"),
        ({"disk_cache_size": 1, "disk_cache_path": "/tmp"}, "set host_cache_size"),
        ({"host_cache_size": 1, "disk_cache_size": 1}, "go together"),
        ({"host_cache_size": 1, "disk_cache_path": "/tmp"}, "go together"),
        ({"host_cache_size": -1}, "host_cache_size"),
        ({"onboard_blocks": False}, "onboard_blocks"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        KvCacheConfig(**options)
