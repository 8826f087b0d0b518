"""What attention is, row by row in fp64, and the forms that it has."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from headrace.cache.specs import ChunkedKV, FullKV, KVSpec, SlidingKV

SCALE = 0.3


@dataclass(frozen=True)
class Form:
    """Which keys rows see, and how scores become weights."""

    window: int | None = None
    chunk: int | None = None
    v_dim: int | None = None
    """None: as wide as keys."""
    soft_cap: float | None = None
    sinks: bool = False

    def spec(self, n_kv: int, dim: int, dtype: torch.dtype) -> KVSpec:
        args = (n_kv, dim, dtype.itemsize)
        if self.window is not None:
            return SlidingKV(*args, self.window, self.v_dim)
        return FullKV(*args, self.v_dim) if self.chunk is None else ChunkedKV(*args, self.chunk, self.v_dim)

    def ranges(self, positions: torch.Tensor) -> torch.Tensor:
        """[R] -> [R, 2]: first key of each row, and one past its last."""
        first = torch.zeros_like(positions)
        if self.window is not None:
            first = (positions - self.window + 1).clamp(min=0)
        if self.chunk is not None:
            first = positions // self.chunk * self.chunk
        return torch.stack((first, positions + 1), 1)

    def sinks_of(self, n_heads: int, seed: int, dtype: torch.dtype) -> torch.Tensor | None:
        noise = torch.randn(n_heads, generator=torch.Generator().manual_seed(seed))
        return (3 * noise).to(dtype) if self.sinks else None

    def expected(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        ranges: torch.Tensor,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """q [R, n_heads, dim], k and v [L, n_kv, width], ranges [R, 2], sinks [n_heads] -> [R, n_heads, v_dim] fp64."""
        shared = q.shape[1] // k.shape[1]
        rows = []
        for x, (first, end) in zip(q.double(), ranges.tolist(), strict=True):
            keys, values = (part[first:end].double().repeat_interleave(shared, 1) for part in (k, v))
            scores = torch.einsum("hd,khd->hk", x, keys) * SCALE
            if self.soft_cap is not None:
                scores = self.soft_cap * torch.tanh(scores / self.soft_cap)
            total = scores.exp().sum(1) + (0 if sinks is None else sinks.double().exp())
            weights = scores.exp() / total[:, None] if end > first else scores
            rows.append(torch.einsum("hk,khd->hd", weights, values))
        return torch.stack(rows)


reaches = st.one_of(
    st.just({}),
    st.sampled_from([1, 5, 32, 33, 64, 150]).map(lambda n: {"window": n}),
    st.sampled_from([1, 7, 32, 48, 64, 130]).map(lambda n: {"chunk": n}),
)

forms = st.builds(
    lambda reach, **rest: Form(**reach, **rest),
    reach=reaches,
    v_dim=st.sampled_from([None, None, 4, 7, 20, 32, 48]),
    soft_cap=st.sampled_from([None, None, 0.5, 2.0, 30.0]),
    sinks=st.booleans(),
)
