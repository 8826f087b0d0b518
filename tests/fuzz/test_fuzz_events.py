"""Who listens to the events of a random life knows the prefix index as it is."""

from __future__ import annotations

from dataclasses import replace

import fuzz_driver
import pytest
from event_listener import Listener
from fuzz_driver import FuzzRig

from headrace.cache.prefix_index import PrefixIndex


def test_replaying_the_events_gives_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiers, forks, salts, partial reuse, priorities that pass, and disks that fail."""
    plain, seen, n_stored = fuzz_driver.with_tiers, set(), 0

    def with_events(config, rng):
        config = plain(config, rng)
        return replace(config, cache=replace(config.cache, event_buffer=1 << 20))

    monkeypatch.setattr(fuzz_driver, "with_tiers", with_events)
    for seed in range(24):
        rig, listener = FuzzRig(seed), Listener()
        if not isinstance(rig.manager.index, PrefixIndex):
            continue
        for _ in range(80):
            rig.act()
            if seed % 3 == 0:
                listener.hear(rig.manager.take_events())
                listener.compare(rig.manager.index)
        listener.hear(rig.manager.take_events())
        listener.compare(rig.manager.index)
        rig.finish_life()
        listener.hear(rig.manager.take_events())
        listener.compare(rig.manager.index)
        seen |= listener.seen
        n_stored += listener.n_stored
    assert seen == {"created", "stored", "removed", "updated"}
    assert n_stored > 100
