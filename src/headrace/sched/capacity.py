"""When there is memory enough to let another sequence in."""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from headrace.cache.hit import Hit
from headrace.cache.manager import CacheManager
from headrace.core.errors import ConfigError
from headrace.core.sequence import Sequence


class CapacityPolicy(Protocol):
    """Asked before an admission, told of what happened."""

    def may_admit(self, seq: Sequence, hit: Hit) -> bool:
        """Changes nothing. True whenever nobody runs: alone, every admitted request fits."""
        ...

    def admitted(self, seq: Sequence) -> None: ...

    def left(self, seq: Sequence) -> None:
        """The sequence ended or was preempted."""
        ...

    def planned(self, samples: bool) -> None:
        """A step was planned; ``samples``: some sequence gets a token from it."""
        ...


class MaxUtilization:
    """Lets a sequence in when what is known of it fits now. When the running ones outgrow the cache, the lowest in
    standing is preempted and computed again later."""

    def __init__(self, manager: CacheManager, rows_in_flight: int) -> None:
        self._manager = manager

    def may_admit(self, seq: Sequence, hit: Hit) -> bool:
        return self._manager.can_hold(hit, len(seq.tokens), 1)

    def admitted(self, seq: Sequence) -> None:
        pass

    def left(self, seq: Sequence) -> None:
        pass

    def planned(self, samples: bool) -> None:
        pass


class GuaranteedNoEvict:
    """Lets a sequence in when all that it and the running ones may ever need fits together.

    What is shared through the prefix index is counted for each. Where blocks of several sizes share sectors, a need is
    counted in sectors filled to the brim; if holes that others left behind make that untrue, preemption steps in.
    """

    def __init__(self, manager: CacheManager, rows_in_flight: int) -> None:
        self._manager = manager
        self._rows = rows_in_flight
        self._reserved = [0] * len(manager.layout.groups)
        self._running: Counter[int] = Counter()
        """Sequences by kin. Beams of one request come and go: room for all of them is kept while one is there."""

    def may_admit(self, seq: Sequence, hit: Hit) -> bool:
        if seq.kin in self._running:
            return True
        together = [held + need for held, need in zip(self._reserved, self._need(seq), strict=True)]
        return not self._running or self._manager.fits_empty(together)

    def admitted(self, seq: Sequence) -> None:
        self._running[seq.kin] += 1
        if self._running[seq.kin] == 1:
            self._reserve(seq, 1)

    def left(self, seq: Sequence) -> None:
        self._running[seq.kin] -= 1
        if self._running[seq.kin] == 0:
            del self._running[seq.kin]
            self._reserve(seq, -1)

    def planned(self, samples: bool) -> None:
        pass

    def _need(self, seq: Sequence) -> list[int]:
        width = max(1, seq.request.sampling.beam_width)
        return [width * blocks for blocks in self._manager.peak_blocks(seq.max_length - 1, self._rows, seq.media)]

    def _reserve(self, seq: Sequence, sign: int) -> None:
        for group, need in enumerate(self._need(seq)):
            self._reserved[group] += sign * need


class StaticBatch(GuaranteedNoEvict):
    """Lets a batch in together, and the next one when all of it has ended. A batch is closed by its first token."""

    def __init__(self, manager: CacheManager, rows_in_flight: int) -> None:
        super().__init__(manager, rows_in_flight)
        self._closed = False

    def may_admit(self, seq: Sequence, hit: Hit) -> bool:
        return (not self._closed or seq.kin in self._running) and super().may_admit(seq, hit)

    def left(self, seq: Sequence) -> None:
        super().left(seq)
        self._closed = self._closed and bool(self._running)

    def planned(self, samples: bool) -> None:
        self._closed = self._closed or samples


_POLICIES: dict[str, type[MaxUtilization | GuaranteedNoEvict]] = {
    "MAX_UTILIZATION": MaxUtilization,
    "GUARANTEED_NO_EVICT": GuaranteedNoEvict,
    "STATIC_BATCH": StaticBatch,
}


def capacity_policy(name: str, manager: CacheManager, rows_in_flight: int) -> CapacityPolicy:
    """The policy of that name; ``rows_in_flight``: rows of one sequence that may be under way at once, at most.
    Raises ``ConfigError`` for another name."""
    if name not in _POLICIES:
        raise ConfigError(f"capacity_scheduler_policy={name!r}; it is one of {', '.join(_POLICIES)}")
    return _POLICIES[name](manager, rows_in_flight)
