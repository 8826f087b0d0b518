"""What attention is, row by row in fp64, the forms that it has, and what a cache keeps of keys and values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from headrace.cache.specs import ChunkedKV, FullKV, KVSpec, SlidingKV

SCALE = 0.3
INT8, FP8 = torch.int8, torch.float8_e4m3fn


def kept(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x [..., width of a head] as a cache of ``dtype`` gives it back, in fp64."""
    if dtype not in (INT8, FP8):
        return x.to(dtype).double()
    most = 127 if dtype == INT8 else 448
    scale = x.float().abs().amax(-1, keepdim=True) / most
    size = torch.where(scale > 0, x.float() / scale, 0.0).double()
    if dtype == INT8:
        return size.round() * scale
    # 4 bits that count, the first of them a one, from 2^-6 on; half a step below that is the least that is not zero.
    step = torch.ldexp(torch.ones_like(size), size.abs().frexp().exponent.clamp(min=-5) - 4)
    number = (size / step).round() * step
    small = size.abs() < 2.0**-6
    return torch.where(small, size.sign() * 2.0**-6 * (size.abs() >= 2.0**-6 - 2.0**-10), number) * scale


def garbage_cache(shape: tuple[int, ...], garbage: float, dtype: torch.dtype) -> torch.Tensor:
    """Memory full of ``garbage``; of numbers of one byte, as the scales among them would read it."""
    if dtype not in (INT8, FP8):
        return torch.full(shape, garbage, dtype=dtype)
    return torch.full((*shape[:-1], shape[-1] // 4), garbage).view(dtype)


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
        if self.chunk is not None:
            return ChunkedKV(*args, self.chunk, self.v_dim, self.window)
        return FullKV(*args, self.v_dim) if self.window is None else SlidingKV(*args, self.window, self.v_dim)

    def ranges(self, positions: torch.Tensor) -> torch.Tensor:
        """[R] -> [R, 2]: first key of each row, and one past its last."""
        first = torch.zeros_like(positions)
        if self.window is not None:
            first = (positions - self.window + 1).clamp(min=0)
        if self.chunk is not None:
            first = torch.maximum(first, positions // self.chunk * self.chunk)
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
    st.sampled_from([(48, 5), (64, 33), (130, 100)]).map(
        lambda pair: dict(zip(("chunk", "window"), pair, strict=True))
    ),
)

forms = st.builds(
    lambda reach, **rest: Form(**reach, **rest),
    reach=reaches,
    v_dim=st.sampled_from([None, None, 4, 7, 20, 32, 48]),
    soft_cap=st.sampled_from([None, None, 0.5, 2.0, 30.0]),
    sinks=st.booleans(),
)
