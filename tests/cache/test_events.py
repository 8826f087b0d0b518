"""What the cache tells of its blocks."""

from __future__ import annotations

import pytest
import xxhash

from headrace import ConfigError, KvCacheConfig, RequestError
from headrace.cache.arena import TierSizes, arena_for_tokens
from headrace.cache.groups import group_layers
from headrace.cache.manager import CacheManager, CacheOptions
from headrace.cache.prefix_index import chain_key
from headrace.cache.specs import FullKV
from headrace.core.clock import VirtualClock
from headrace.core.retention import USUAL_ASKS, Ask, Asks


def cache(size: int = 100, blocks: int = 3, host: int = 0, clock: VirtualClock | None = None) -> CacheManager:
    groups = group_layers([FullKV(1, 16, 2)])
    options = CacheOptions(event_buffer=size, tiers=TierSizes(host, 0))
    return CacheManager(groups, arena_for_tokens(groups, 32 * blocks), options, clock)


def run(manager: CacheManager, tokens: list[int], identity: str | None = None, asks: Asks = USUAL_ASKS) -> None:
    hit = manager.lookup(identity, tokens, len(tokens) - 1)
    placement = manager.place(0, hit, tokens, len(tokens), asks)
    if placement.sources is not None:
        manager.drop(placement.sources)
    manager.commit(placement.lease, tokens, len(tokens))
    manager.retire(placement.lease)


def text(first: int, n: int) -> list[int]:
    return list(range(first, first + n))


def data(manager: CacheManager) -> list[dict]:
    return [event["data"] for event in manager.take_events()]


def test_a_chain_is_told_as_one_and_what_it_hangs_on() -> None:
    manager = cache(blocks=6)
    assert data(manager) == [{"type": "created", "num_blocks_per_cache_level": [6, 0, 0]}]
    run(manager, text(100, 64))
    (first,) = data(manager)
    assert (first["parent_hash"], first["root_hash"]) == (None, xxhash.xxh3_128_digest(b"").hex())
    keys = [chain_key(xxhash.xxh3_128_digest(b""), tuple(text(100, 32)))]
    keys.append(chain_key(keys[0], tuple(text(132, 32))))
    assert [block["block_hash"] for block in first["blocks"]] == [key.hex() for key in keys]
    assert [token["token_id"] for token in first["blocks"][1]["tokens"]] == text(132, 32)
    assert {(block["cache_level"], block["priority"]) for block in first["blocks"]} == {(0, 35)}
    run(manager, text(100, 96))
    (second,) = data(manager)
    assert (second["parent_hash"], len(second["blocks"])) == (keys[1].hex(), 1)
    run(manager, text(100, 96))
    assert data(manager) == [], "nothing has come, gone or moved"


def test_adapters_and_salts_begin_at_roots_of_their_own() -> None:
    manager = cache(blocks=6)
    for identity in (None, "salt:a", "lora:1234:salt:a"):
        run(manager, text(100, 32), identity)
    roots = [event["root_hash"] for event in data(manager)[1:]]
    names = (b"", b"salt:salt:a", b"salt:lora:1234:salt:a")
    assert roots == [xxhash.xxh3_128_digest(name).hex() for name in names]


def test_what_makes_room_moves_or_is_gone() -> None:
    clock = VirtualClock()
    manager = cache(host=1, clock=clock)
    run(manager, text(100, 96), asks=Asks((), Ask(50, 1.0)))
    key = data(manager)[1]["blocks"][2]["block_hash"]
    clock.advance(2)
    updated = data(manager)
    assert [event["priority"] for event in updated] == [{"type": "event_diff", "old_value": 50, "new_value": 35}] * 3
    run(manager, text(500, 32))
    moved, stored = sorted(data(manager), key=lambda event: event["type"], reverse=True)
    assert (moved["block_hash"], moved["priority"], stored["type"]) == (key, None, "stored")
    assert moved["cache_level"] == {"type": "event_diff", "old_value": 0, "new_value": 1}
    run(manager, text(700, 32))
    gone = [event for event in data(manager) if event["type"] == "removed"]
    assert gone == [{"type": "removed", "block_hashes": [key]}]


def test_a_full_buffer_says_how_much_it_lost() -> None:
    manager = cache(size=2)
    for first in range(0, 5000, 1000):
        run(manager, text(first, 32))
        manager.take_moves()
    events = manager.take_events()
    assert len(events) == 3
    dropped = events[0]
    n_lost = dropped["data"]["num_events"]
    assert dropped == {"event_id": 0, "data": {"type": "dropped", "num_events": n_lost}}
    assert [event["event_id"] for event in events[1:]] == [n_lost, n_lost + 1]
    run(manager, text(9000, 32))
    assert [event["event_id"] for event in manager.take_events()] == [n_lost + 2, n_lost + 3]


def test_without_a_buffer_nothing_is_told_and_nobody_waits_for_it() -> None:
    with pytest.raises(RequestError, match=r"no events are kept; start with KvCacheConfig\(event_buffer_max_size"):
        cache(size=0).take_events()
    with pytest.raises(ConfigError, match="event_buffer_max_size tells of blocks kept for reuse"):
        KvCacheConfig(event_buffer_max_size=5, enable_block_reuse=False)
