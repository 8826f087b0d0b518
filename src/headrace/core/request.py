"""A request as the engine takes it in: immutable, tokenised, every default resolved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .lora import LoRARequest, PlacedAdapter
from .media import MediaItem
from .pooling import Pooling
from .retention import USUAL_ASKS, Asks
from .sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Request:
    """``n`` sequences over one prompt.

    ``seed`` is never missing: when the user gave none, the front draws one and reports it. Sequence i of the request
    samples from the stream (seed, i, position).
    """

    request_id: int
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    seed: int
    arrival: float
    """Clock reading."""
    eos_ids: frozenset[int] = frozenset()
    """End-of-sequence ids that apply: the model's or ``end_id``; empty with ``ignore_eos`` or ``end_id=-1``."""
    priority: float = 0.5
    """0 to 1; higher goes first."""
    deadline: float | None = None
    """Clock reading at which the request ends with TIMEOUT."""
    cache_salt: str | None = None
    """Prefixes are shared only among requests of equal salt."""
    asks: Asks = USUAL_ASKS
    """What its blocks are worth to it in the cache."""
    second_from: int | None = None
    """Where the second of two texts begins in the prompt; None: there is one."""
    grammar: Any = None
    """``guided_decoding`` compiled, a ``guided.contract.Grammar``; it never leaves the engine's process."""
    media: tuple[MediaItem, ...] = ()
    """In the order of their placeholders."""
    beam_text: Any = None
    """The empty text of a beam (``engine.stop_texts.BeamText``), where stop strings end beams; it never leaves the
    engine's process."""
    pooling: Pooling | None = None
    """The prompt is encoded, not continued: nothing is sampled, and ``n`` is 1."""
    lora: LoRARequest | None = None
    """The adapter that was asked for; None: the model alone."""
    adapter: PlacedAdapter | None = None
    """The same, once it is loaded."""

    @property
    def n(self) -> int:
        """Sequences that come back to the front: of beams the best, otherwise all that are drawn."""
        sampling = self.sampling
        return sampling.n if sampling.use_beam_search else max(sampling.n, sampling.best_of or 1)

    @property
    def cache_identity(self) -> str | None:
        """What a prefix is shared under: adapter and salt, so written that no two are alike."""
        salt = "" if self.cache_salt is None else f"salt:{self.cache_salt}"
        return f"lora:{self.adapter.content}:{salt}" if self.adapter is not None else salt or None

    @property
    def stop_ids(self) -> frozenset[int]:
        return self.eos_ids | frozenset(self.sampling.stop_token_ids or ())
