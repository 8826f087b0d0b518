"""Sliding windows that a user sets: layer by layer, over what the model's own configuration says."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.core.errors import ConfigError
from headrace.layers.base import CachedLayer

_OPTION = "KvCacheConfig.max_attention_window"


def narrow(layers: Sequence[CachedLayer], windows: Sequence[int], max_seq_len: int) -> tuple[int, ...]:
    """Rows of the layers with attention over the text read the last ``windows[i]`` positions at most, from now on.

    The list is repeated over these layers. A window is never widened, and one of ``max_seq_len`` or more takes nothing
    away. For the build, before caches are laid out.

    Returns:
        Places in ``layers`` of those that read less than before.

    Raises:
        ConfigError: there is no such layer, there are more windows than layers, or nothing changes.
    """
    can = [place for place, layer in enumerate(layers) if layer.cache_spec.within(1) != layer.cache_spec]
    asked = f"{_OPTION}={list(windows)}"
    if not can:
        raise ConfigError(f"{asked}: no layer of this model keeps keys of its text; leave it out")
    if len(windows) > len(can):
        raise ConfigError(
            f"{asked} has {len(windows)} windows, and the model {len(can)} layers with attention over the text; give at"
            f" most {len(can)}"
        )
    narrowed = []
    for number, place in enumerate(can):
        window = windows[number % len(windows)]
        spec = layers[place].cache_spec
        layers[place].cache_spec = spec if window >= max_seq_len else spec.within(window)
        if layers[place].cache_spec != spec:
            narrowed.append(place)
    if not narrowed:
        raise ConfigError(
            f"{asked} takes nothing away: no window is smaller than max_seq_len={max_seq_len} and than what the model"
            " reads anyway; leave it out, or set a smaller one"
        )
    return tuple(narrowed)
