"""Drafts by looking up where the last tokens have stood before: no model, no extra KV.

The options are those of TensorRT-LLM's ``NGramDecodingConfig``. Let the sequence end with the n-gram g. An *occurrence*
of g is a place, in a text of the pool, where g stands and at least one token follows. The draft is what follows the
chosen occurrence of the longest g (n = ``max_matching_ngram_size``, ..., 1) that has one.

    text   a b c d a b e ... a b        g = (a, b), two occurrences
               ^oldest   ^newest        drafts: c d a ...  or  e ...

An n-gram enters the index when the token after it arrives, so an occurrence always has a continuation, and the end of
the text never matches itself. Work per token is ``max_matching_ngram_size`` dictionary updates.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ..core.errors import ConfigError

NGram = tuple[int, ...]

PUBLIC_POOL_TOKENS = 65536
"""Tokens whose n-grams the public pool remembers; about 250 bytes for each of their n-grams."""


class Place(NamedTuple):
    """Where a continuation starts: ``text[start]`` is the token after the n-gram."""

    text: list[int]
    start: int


class _Places(Protocol):
    """The places of each n-gram: what to keep, and which to use."""

    def add(self, ngram: NGram, place: Place) -> None: ...
    def remove(self, ngram: NGram, place: Place) -> None:
        """Forgets the place; it is the oldest one added for the n-gram and not yet removed."""
        ...

    def get(self, ngram: NGram) -> Place | None: ...
    def __len__(self) -> int: ...


class _NewestPlace:
    """One place per n-gram, the last one added. Older ones would never be used: they are also forgotten first."""

    def __init__(self) -> None:
        self._place: dict[NGram, Place] = {}

    def add(self, ngram: NGram, place: Place) -> None:
        self._place[ngram] = place

    def remove(self, ngram: NGram, place: Place) -> None:
        if self._place.get(ngram) is place:
            del self._place[ngram]

    def get(self, ngram: NGram) -> Place | None:
        return self._place.get(ngram)

    def __len__(self) -> int:
        return len(self._place)


class _OldestPlace:
    """The first place of each n-gram that is still remembered; the later ones wait behind it."""

    def __init__(self) -> None:
        self._first: dict[NGram, Place] = {}
        self._later: dict[NGram, deque[Place]] = {}  # only for n-grams seen twice: most are not

    def add(self, ngram: NGram, place: Place) -> None:
        if ngram not in self._first:
            self._first[ngram] = place
        else:
            self._later.setdefault(ngram, deque()).append(place)

    def remove(self, ngram: NGram, place: Place) -> None:
        later = self._later.get(ngram)
        if later is None:
            del self._first[ngram]
            return
        self._first[ngram] = later.popleft()
        if not later:
            del self._later[ngram]

    def get(self, ngram: NGram) -> Place | None:
        return self._first.get(ngram)

    def __len__(self) -> int:
        return len(self._first) + sum(len(later) for later in self._later.values())


class _FirstPlace(_OldestPlace):
    """The first place for good: for pools that forget all at once, where the later ones would never be used."""

    def add(self, ngram: NGram, place: Place) -> None:
        self._first.setdefault(ngram, place)


class _Pool:
    """An index of n-grams over texts, which forgets the oldest when it holds those of more than ``max_tokens``."""

    def __init__(self, places: _Places, max_ngram: int, max_tokens: int | None) -> None:
        self._places = places
        self._max_ngram = max_ngram
        self._max_tokens = max_tokens
        self._log: deque[Place] = deque()  # in order of arrival; all n-grams that end before place.start

    def append(self, text: list[int], token: int) -> None:
        """Appends ``token`` to ``text`` and indexes the n-grams before it."""
        if text:
            place = Place(text, len(text))
            for ngram in self._ngrams_before(place):
                self._places.add(ngram, place)
            self._remember(place)
        text.append(token)

    def find(self, text: list[int]) -> Place | None:
        """The chosen place of the longest n-gram at the end of ``text``."""
        for ngram in self._ngrams_before(Place(text, len(text))):
            place = self._places.get(ngram)
            if place is not None:
                return place
        return None

    def _ngrams_before(self, place: Place) -> list[NGram]:
        text, start = place
        return [tuple(text[start - size : start]) for size in range(min(self._max_ngram, start), 0, -1)]

    def _remember(self, place: Place) -> None:
        if self._max_tokens is None:
            return
        self._log.append(place)
        if len(self._log) > self._max_tokens:
            oldest = self._log.popleft()
            for ngram in self._ngrams_before(oldest):
                self._places.remove(ngram, oldest)


class NGramProposer:
    """Drafts from a pool of n-grams and what followed them. See the head of this file.

    With ``is_public_pool`` all sequences, ended ones too, share one pool of bounded size (``max_pool_tokens``, oldest
    forgotten first): drafts then depend on strangers, the output never does. Otherwise each sequence has its own pool,
    gone with ``drop``. ``is_keep_all=False`` keeps the latest occurrence of an n-gram only; with ``True``,
    ``is_use_oldest`` says which is used.
    """

    needs_tokens = True

    def __init__(
        self,
        max_draft_len: int,
        max_matching_ngram_size: int = 2,
        *,
        is_keep_all: bool = True,
        is_use_oldest: bool = True,
        is_public_pool: bool = True,
        max_pool_tokens: int = PUBLIC_POOL_TOKENS,
    ) -> None:
        for name, value in (
            ("max_draft_len", max_draft_len),
            ("max_matching_ngram_size", max_matching_ngram_size),
            ("max_pool_tokens", max_pool_tokens),
        ):
            if value < 1:
                raise ConfigError(f"NGramDecodingConfig.{name}={value}: must be at least 1")
        self._max_draft_len = max_draft_len
        self._max_ngram = max_matching_ngram_size
        self._use_oldest = is_keep_all and is_use_oldest
        self._texts: dict[int, list[int]] = {}
        self._pools: dict[int, _Pool] = {}
        self._public = self._public_pool(max_pool_tokens) if is_public_pool else None

    def admit(self, seq_id: int, tokens: Sequence[int]) -> None:
        if seq_id in self._texts:
            raise ValueError(f"sequence {seq_id} is already admitted to the n-gram proposer")
        self._texts[seq_id] = []
        self._pools[seq_id] = self._public or self._private_pool()
        self.extend(seq_id, tokens)

    def extend(self, seq_id: int, tokens: Sequence[int]) -> None:
        text, pool = self._texts[seq_id], self._pools[seq_id]
        for token in tokens:
            pool.append(text, token)

    def propose(self, seq_id: int, limit: int) -> tuple[int, ...]:
        place = self._pools[seq_id].find(self._texts[seq_id])
        if place is None:
            return ()
        length = min(limit, self._max_draft_len)
        return tuple(place.text[place.start : place.start + length])

    def drop(self, seq_id: int) -> None:
        del self._texts[seq_id]
        del self._pools[seq_id]

    def _public_pool(self, max_tokens: int) -> _Pool:
        return _Pool(_OldestPlace() if self._use_oldest else _NewestPlace(), self._max_ngram, max_tokens)

    def _private_pool(self) -> _Pool:
        return _Pool(_FirstPlace() if self._use_oldest else _NewestPlace(), self._max_ngram, None)
