"""How much memory there is, and what it is planned for. Planned and printed before it is taken."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from headrace.core.errors import ConfigError

_CGROUP_V2 = Path("/sys/fs/cgroup")
_CGROUP_V1 = Path("/sys/fs/cgroup/memory")
GIB = 1 << 30


def available_bytes() -> int:
    """Bytes this process may still take: the machine's available memory, or what the cgroup leaves if that is less."""
    free = psutil.virtual_memory().available
    for limit_file, used_file in (
        (_CGROUP_V2 / "memory.max", _CGROUP_V2 / "memory.current"),
        (_CGROUP_V1 / "memory.limit_in_bytes", _CGROUP_V1 / "memory.usage_in_bytes"),
    ):
        if not (limit_file.exists() and used_file.exists()):
            continue
        limit = limit_file.read_text().strip()
        if limit != "max":
            free = min(free, max(0, int(limit) - int(used_file.read_text())))
    return free


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Where memory goes, in bytes."""

    weights: int
    kv_cache: int
    slots: int
    available: int
    """Before the weights are read."""
    kv_tokens: int
    """Tokens of all paged layers that the cache holds."""
    adapters: int = 0
    """Of as many as may be loaded, each of the largest rank; taken when one is loaded."""
    host_tier: int = 0
    """For blocks that had to make room in the cache."""
    draft_cache: int = 0
    """Of a draft head that has a cache of its own."""

    def rows(self) -> list[tuple[str, int]]:
        rows = [("weights", self.weights), ("KV cache", self.kv_cache), ("slots", self.slots)]
        rare = [
            ("adapters, at most", self.adapters),
            ("KV cache, host tier", self.host_tier),
            ("KV cache of drafts", self.draft_cache),
        ]
        return rows + [(what, size) for what, size in rare if size]

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size / GIB:.2f} GiB" for name, size in self.rows())
        return f"{parts} ({self.kv_tokens:,} tokens); {self.available / GIB:.1f} GiB available"


def kv_budget(wanted: int, weights: int, available: int) -> int:
    """Bytes of cache when the user set none: what the settings can need, at most half of the memory the weights leave.

    Raises ``ConfigError`` when the weights alone do not fit.
    """
    left = available - weights
    if left <= 0:
        raise ConfigError(
            f"the weights take {weights / GIB:.2f} GiB and {available / GIB:.2f} GiB are available;"
            " take a smaller model or dtype='bfloat16', or free memory"
        )
    return min(wanted, left // 2)
