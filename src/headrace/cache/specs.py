"""What one layer keeps of the past. A model declares one spec per layer; equal specs share block tables.

A new kind of memory is a new dataclass with the members of ``CacheSpec``; nothing else in the cache names a kind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from headrace.core.errors import ConfigError
from headrace.core.plan import BLOCK_TOKENS


class CacheSpec(Protocol):
    """The memory of one layer, in tokens and bytes."""

    of_tokens: ClassVar[bool]
    """Its blocks hold the tokens of the sequence. False: something else, of a length of its own (see ``CrossKV``)."""

    @property
    def bytes_per_block(self) -> int:
        """Bytes of a block in one layer."""
        ...

    @property
    def keeps_all(self) -> bool:
        """True if every position needs all positions before it, so that a prefix with a hole is worth nothing."""
        ...

    def reads_from(self, position: int) -> int:
        """First position that the row at ``position`` reads."""
        ...

    @property
    def resumes_inside(self) -> bool:
        """True if a sequence can go on from any position of a block, not only from its end."""
        ...

    def needed_from(self, length: int) -> int:
        """First position, at a block border, whose block rows at ``length`` and after it still read."""
        ...

    def peak_blocks(self, length: int, rows: int) -> int:
        """Most blocks held at once while ``length`` tokens are computed, at most ``rows`` of them in one go."""
        ...

    def within(self, window: int) -> CacheSpec:
        """The same memory where a row reads the last ``window`` positions at most; itself if that takes nothing away,
        or if it is not one of keys that a row could see fewer of."""
        ...


@dataclass(frozen=True, slots=True)
class FullKV:
    """Keys and values of every position."""

    of_tokens: ClassVar[bool] = True

    n_kv_heads: int
    head_dim: int
    itemsize: int
    """Bytes of one number. Numbers of one byte have a scale beside them for each token and head, of keys and of values:
    a float32."""
    v_head_dim: int | None = None
    """Width of a value head where it differs from the key's."""

    @property
    def bytes_per_block(self) -> int:
        return BLOCK_TOKENS * _kv_bytes(self.n_kv_heads, self.head_dim, self.v_head_dim, self.itemsize)

    @property
    def keeps_all(self) -> bool:
        return True

    @property
    def resumes_inside(self) -> bool:
        return True

    def reads_from(self, position: int) -> int:
        return 0

    def needed_from(self, length: int) -> int:
        return 0

    def peak_blocks(self, length: int, rows: int) -> int:
        return blocks_of(length)

    def within(self, window: int) -> SlidingKV:
        return SlidingKV(self.n_kv_heads, self.head_dim, self.itemsize, window, self.v_head_dim)


@dataclass(frozen=True, slots=True)
class SlidingKV:
    """Keys and values of the last ``window`` positions, the row's own among them: row p reads p - window + 1 .. p."""

    of_tokens: ClassVar[bool] = True

    n_kv_heads: int
    head_dim: int
    itemsize: int
    window: int
    v_head_dim: int | None = None

    def __post_init__(self) -> None:
        _check_window(self.window)

    @property
    def bytes_per_block(self) -> int:
        return BLOCK_TOKENS * _kv_bytes(self.n_kv_heads, self.head_dim, self.v_head_dim, self.itemsize)

    @property
    def keeps_all(self) -> bool:
        return False

    @property
    def resumes_inside(self) -> bool:
        return True

    def reads_from(self, position: int) -> int:
        return _window_start(position, self.window)

    def needed_from(self, length: int) -> int:
        return _block_border(self.reads_from(length))

    def peak_blocks(self, length: int, rows: int) -> int:
        return _peak_of_window(self.window, length, rows)

    def within(self, window: int) -> SlidingKV:
        return replace(self, window=min(window, self.window))


@dataclass(frozen=True, slots=True)
class LatentKV:
    """What the keys and values of all heads are made of (MLA): one latent vector and one rotated key a position."""

    of_tokens: ClassVar[bool] = True

    rank: int
    """Width of the latent vector."""
    rope_dim: int
    """Width of the rotated key."""
    itemsize: int
    """As in ``FullKV``; latent vector and rotated key have a scale each."""
    window: int | None = None
    """As in ``SlidingKV``; None: a row reads all positions before it."""

    def __post_init__(self) -> None:
        _check_window(self.window)

    @property
    def bytes_per_block(self) -> int:
        return BLOCK_TOKENS * (_key_bytes(self.rank, self.itemsize) + _key_bytes(self.rope_dim, self.itemsize))

    @property
    def keeps_all(self) -> bool:
        return self.window is None

    @property
    def resumes_inside(self) -> bool:
        return True

    def reads_from(self, position: int) -> int:
        return 0 if self.window is None else _window_start(position, self.window)

    def needed_from(self, length: int) -> int:
        return _block_border(self.reads_from(length))

    def peak_blocks(self, length: int, rows: int) -> int:
        return blocks_of(length) if self.window is None else _peak_of_window(self.window, length, rows)

    def within(self, window: int) -> LatentKV:
        return replace(self, window=window if self.window is None else min(window, self.window))


@dataclass(frozen=True, slots=True)
class ChunkedKV:
    """Keys and values of the chunk of ``chunk`` positions that a row is in: row p reads p - p % chunk .. p."""

    of_tokens: ClassVar[bool] = True

    n_kv_heads: int
    head_dim: int
    itemsize: int
    chunk: int
    v_head_dim: int | None = None
    window: int | None = None
    """Of its chunk a row reads no more than the last so many positions, its own among them; None: all."""

    def __post_init__(self) -> None:
        _check_window(self.window)
        if self.chunk < 1:
            raise ConfigError(f"attention chunks of {self.chunk} tokens; they must hold at least the row's own token")

    @property
    def bytes_per_block(self) -> int:
        return BLOCK_TOKENS * _kv_bytes(self.n_kv_heads, self.head_dim, self.v_head_dim, self.itemsize)

    @property
    def keeps_all(self) -> bool:
        return False

    @property
    def resumes_inside(self) -> bool:
        return True

    def reads_from(self, position: int) -> int:
        first = position - position % self.chunk
        return first if self.window is None else max(first, _window_start(position, self.window))

    def needed_from(self, length: int) -> int:
        return _block_border(self.reads_from(length))

    def peak_blocks(self, length: int, rows: int) -> int:
        # The worst rows begin with the last of a chunk; the worst chunk begins furthest behind a block border.
        span = self.chunk - 1 + rows
        behind = BLOCK_TOKENS - math.gcd(self.chunk, BLOCK_TOKENS)
        peak = min(blocks_of(length), blocks_of(behind + span))
        return peak if self.window is None else min(peak, _peak_of_window(self.window, length, rows))

    def within(self, window: int) -> ChunkedKV:
        narrowest = min(window, self.window or window)
        return self if narrowest >= self.chunk else replace(self, window=narrowest)


@dataclass(frozen=True, slots=True)
class RecurrentState:
    """The state of a recurrence (Mamba2, gated delta net) and of the convolution before it.

    Block number b holds the state after the last computed token of its 32. Once they are all computed it never changes:
    it is a checkpoint, from which any sequence with these tokens can go on. The next token's state goes to block b + 1.
    """

    of_tokens: ClassVar[bool] = True

    n_floats: int
    """Numbers of one layer's state, all float32."""

    @property
    def bytes_per_block(self) -> int:
        return 4 * self.n_floats

    @property
    def keeps_all(self) -> bool:
        return False

    @property
    def resumes_inside(self) -> bool:
        return False

    def reads_from(self, position: int) -> int:
        return max(0, position - 1)

    def needed_from(self, length: int) -> int:
        return _block_border(self.reads_from(length))

    def peak_blocks(self, length: int, rows: int) -> int:
        return min(blocks_of(length), 1 + blocks_of(rows))

    def within(self, window: int) -> RecurrentState:
        return self


@dataclass(frozen=True, slots=True)
class CrossKV:
    """Keys and values of what an encoder made of a request's media: written once, as a whole, and read by all rows.

    Rows of text see a range of them. A sequence has as many blocks as its media need, however long its text is.
    """

    of_tokens: ClassVar[bool] = False

    n_kv_heads: int
    head_dim: int
    itemsize: int
    v_head_dim: int | None = None

    @property
    def bytes_per_block(self) -> int:
        return BLOCK_TOKENS * _kv_bytes(self.n_kv_heads, self.head_dim, self.v_head_dim, self.itemsize)

    @property
    def keeps_all(self) -> bool:
        return True

    @property
    def resumes_inside(self) -> bool:
        return True

    def reads_from(self, position: int) -> int:
        return 0

    def needed_from(self, length: int) -> int:
        return 0

    def peak_blocks(self, length: int, rows: int) -> int:
        return 0

    def within(self, window: int) -> CrossKV:
        return self


_SCALE_BYTES = 4

KVSpec = FullKV | SlidingKV | ChunkedKV | CrossKV
"""Keys and values of a position, for each KV head: what an attention backend reads."""


def blocks_of(n_tokens: int) -> int:
    """Blocks that hold ``n_tokens`` tokens from a block border on."""
    return -(-n_tokens // BLOCK_TOKENS)


def _block_border(position: int) -> int:
    return position // BLOCK_TOKENS * BLOCK_TOKENS


def _check_window(window: int | None) -> None:
    if window is not None and window < 1:
        raise ConfigError(f"a sliding window of {window} tokens; it must hold at least the row's own token")


def _window_start(position: int, window: int) -> int:
    return max(0, position - window + 1)


def _peak_of_window(window: int, length: int, rows: int) -> int:
    # The worst place for a span of tokens is one that begins with the last token of a block.
    span = window - 1 + rows
    return min(blocks_of(length), 1 + blocks_of(span - 1))


def _kv_bytes(n_kv_heads: int, head_dim: int, v_head_dim: int | None, itemsize: int) -> int:
    value_bytes = (head_dim if v_head_dim is None else v_head_dim) * itemsize + (_SCALE_BYTES if itemsize == 1 else 0)
    return n_kv_heads * (_key_bytes(head_dim, itemsize) + value_bytes)


def _key_bytes(width: int, itemsize: int) -> int:
    """Of the ``width`` numbers of a key, and of their scale where they have one: then they lie in fours."""
    return width * itemsize if itemsize > 1 else -(-width // 4) * 4 + _SCALE_BYTES
