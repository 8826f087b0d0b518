"""Somebody who knows the prefix index by its events alone."""

from __future__ import annotations

import struct
from typing import Any

import xxhash

from headrace.cache.prefix_index import PrefixIndex


class Listener:
    """Replays events, and checks every hash on the way."""

    def __init__(self) -> None:
        self.blocks: dict[str, dict[str, Any]] = {}
        """By hash: tokens, parent, level and priority."""
        self.next_id = 0
        self.seen: set[str] = set()
        self.n_stored = 0

    def hear(self, events: list[dict[str, Any]]) -> None:
        for event in events:
            assert event["event_id"] == self.next_id
            self.next_id += 1
            data = event["data"]
            self.seen.add(data["type"])
            getattr(self, "_" + data["type"])(data)

    def _created(self, data: dict[str, Any]) -> None:
        assert self.next_id == 1
        assert data["num_blocks_per_cache_level"][0] > 0

    def _stored(self, data: dict[str, Any]) -> None:
        parent = data["parent_hash"]
        before = data["root_hash"] if parent is None else parent
        for block in data["blocks"]:
            tokens = tuple(token["token_id"] for token in block["tokens"])
            key = xxhash.xxh3_128_digest(bytes.fromhex(before) + struct.pack("<32q", *tokens)).hex()
            assert block["block_hash"] == key
            assert key not in self.blocks, "stored twice"
            self.blocks[key] = {
                "tokens": tokens, "before": before, "cache_level": block["cache_level"], "priority": block["priority"],
            }  # fmt: skip
            before = key
            self.n_stored += 1

    def _removed(self, data: dict[str, Any]) -> None:
        for key in data["block_hashes"]:
            del self.blocks[key]

    def _updated(self, data: dict[str, Any]) -> None:
        changed = 0
        for name in ("cache_level", "priority"):
            if data[name] is not None:
                block = self.blocks[data["block_hash"]]
                assert block[name] == data[name]["old_value"] != data[name]["new_value"]
                block[name] = data[name]["new_value"]
                changed += 1
        assert changed

    def compare(self, index: PrefixIndex) -> None:
        """What is known is what is there."""
        real = {}
        for node in index._nodes.values():
            holes = [
                spec
                for spec, block, kept in zip(index._specs, node.blocks, node.kept, strict=True)
                if spec.keeps_all and not block and kept is None
            ]
            kept = [one for one in node.kept if one is not None]
            if holes or not (kept or any(node.blocks)):
                continue
            level = max((2 if one.on_disk or one.arrives is not None else 1 for one in kept), default=0)
            real[node.key.hex()] = {
                "tokens": node.tokens, "before": node.parent.key.hex(), "cache_level": level, "priority": node.priority,
            }  # fmt: skip
        assert self.blocks == real
