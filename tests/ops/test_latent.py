"""Latent attention and products head by head against float64; bits of rows alone and in company."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_oracle import FP8, INT8, garbage_cache, kept
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.cache.specs import LatentKV
from headrace.core.errors import EngineError
from headrace.core.plan import BLOCK_TOKENS
from headrace.ops.batch import Batch, GroupBatch
from headrace.ops.native import core
from headrace.ops.reference import attention as reference
from headrace.ops.reference.latent import PER_HEAD

F32, BF16 = torch.float32, torch.bfloat16
TOLERANCE = {F32: 3e-5, BF16: 3e-2, INT8: 1e-3, FP8: 3e-2}
N_LAYERS = 2
NO_BLOCK = 1 << 30
SCALE = 0.3


def native() -> Any:
    from headrace.ops.native.attention import BACKEND

    return BACKEND


BACKENDS = [
    pytest.param(lambda: reference.BACKEND, id="reference"),
    pytest.param(
        native,
        id="native",
        marks=pytest.mark.skipif(not core.is_available(), reason=f"no native core: {core.reason()}"),
    ),
]
needs_core = pytest.mark.skipif(not core.is_available(), reason=f"no native core: {core.reason()}")


class Sequences:
    """Sequences of random queries and latents, and a cache full of garbage for them."""

    def __init__(self, backend: Any, lengths: list[int], n_heads: int, rank: int, rope_dim: int, seed: int = 0,
                 rows: torch.dtype = F32, cache: torch.dtype = F32, garbage: float = torch.nan,
                 window: int | None = None) -> None:  # fmt: skip
        rng = torch.Generator().manual_seed(seed)

        def noise(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=rng).to(rows)

        self.backend, self.lengths, self.cache_dtype = backend, lengths, cache
        self.spec = LatentKV(rank, rope_dim, cache.itemsize, window)
        self.q = [noise(length, n_heads, rank + rope_dim) for length in lengths]
        self.kv = [noise(length, rank + rope_dim) for length in lengths]
        widths = [-(-length // BLOCK_TOKENS) for length in lengths]
        numbers = self.spec.bytes_per_block // cache.itemsize
        self.memory = garbage_cache((1 + sum(widths), N_LAYERS, numbers), garbage, cache)
        order = (1 + torch.randperm(sum(widths), generator=rng)).tolist()
        self.table = torch.full((len(lengths), max(widths)), NO_BLOCK, dtype=torch.int32)
        for s, width in enumerate(widths):
            self.table[s, :width] = torch.tensor([order.pop() for _ in range(width)])

    def step(self, parts: list[tuple[int, int, int]]) -> list[torch.Tensor]:
        """Rows [first, last) of sequences, together: [(sequence, first, last)] -> their outputs."""
        positions = [torch.arange(first, last) for _, first, last in parts]
        where = [self.table[s, p // 32].long() * 32 + p % 32 for (s, _, _), p in zip(parts, positions, strict=True)]
        counts = torch.tensor([0] + [last - first for _, first, last in parts])
        batch = Batch(
            input_ids=torch.zeros(int(counts.sum()), dtype=torch.int64),
            positions=torch.cat(positions),
            query_starts=counts.cumsum(0),
            seq_lens=torch.tensor([last for _, _, last in parts]),
            groups=(GroupBatch(self.table[[s for s, _, _ in parts]], torch.cat(where)),),
        )
        q, kv = (torch.cat([x[s][first:last] for s, first, last in parts]) for x in (self.q, self.kv))
        rank = self.spec.rank
        # As a model hands them over: of queries, two tensors of their own; of latents, parts of a wide row.
        q_latent, q_rope = q[..., :rank].contiguous(), q[..., rank:].contiguous()
        metadata = self.backend.plan(batch, 0, self.spec)
        latent = self.backend.latent
        cache = latent.bind(self.memory[:, 1], self.spec)
        latent.write(kv[:, :rank], kv[:, rank:], cache, metadata)
        out = latent.attend(q_latent, q_rope, cache, metadata, scale=SCALE)
        assert (out.dtype, out.shape) == (q.dtype, q_latent.shape)
        return list(out.split([last - first for _, first, last in parts]))

    def whole(self) -> list[torch.Tensor]:
        """Every sequence in one piece, alone."""
        return [self.step([(s, 0, length)])[0] for s, length in enumerate(self.lengths)]

    def expected(self, s: int) -> torch.Tensor:
        rank = self.spec.rank
        kv = torch.cat([kept(x, self.cache_dtype) for x in (self.kv[s][:, :rank], self.kv[s][:, rank:])], 1)
        scores = torch.einsum("qhd,kd->hqk", self.q[s].double(), kv).mul(SCALE)
        ones = torch.ones(len(kv), len(kv), dtype=torch.bool)
        unseen = ones.triu(1) if self.spec.window is None else ones.triu(1) | ones.tril(-self.spec.window)
        weights = scores.masked_fill(unseen, -torch.inf).softmax(-1)
        return torch.einsum("hqk,kd->qhd", weights, kv[:, : self.spec.rank])


def cut(sequences: Sequences, seed: int) -> list[torch.Tensor]:
    """All rows in steps of random rows of random sequences."""
    rng = torch.Generator().manual_seed(seed)
    done = [0] * len(sequences.lengths)
    pieces: list[list[torch.Tensor]] = [[] for _ in done]
    while any(at < length for at, length in zip(done, sequences.lengths, strict=True)):
        parts = []
        for s, length in enumerate(sequences.lengths):
            n = int(torch.randint(0, 40, (), generator=rng))
            n = 1 if n % 3 == 0 else n
            if done[s] < length and n:
                parts.append((s, done[s], min(length, done[s] + n)))
        for (s, _, last), out in zip(parts, sequences.step(parts) if parts else [], strict=True):
            pieces[s].append(out)
            done[s] = last
    return [torch.cat(part) for part in pieces]


shapes = {
    "lengths": st.lists(st.sampled_from([1, 2, 31, 32, 33, 70, 129, 200, 300]), min_size=1, max_size=4),
    "n_heads": st.sampled_from([1, 2, 3, 7, 16, 24, 48]),
    "rank": st.sampled_from([4, 12, 26, 32, 40, 64]),
    "rope_dim": st.sampled_from([2, 6, 8]),
    "rows": st.sampled_from([F32, BF16]),
    "cache": st.sampled_from([F32, BF16, INT8, FP8]),
    "window": st.sampled_from([None, None, 1, 40, 130]),
    "garbage": st.sampled_from([torch.nan, torch.inf, -torch.inf, 1e30]),
    "seed": st.integers(0, 1 << 30),
}


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=15, deadline=None)
@given(**shapes)
def test_any_shape_equals_the_oracle_and_garbage_never_leaks(
    backend, lengths, n_heads, rank, rope_dim, rows, cache, garbage, window, seed
) -> None:
    case = Sequences(backend(), lengths, n_heads, rank, rope_dim, seed, rows, cache, garbage, window)
    tolerance = max(TOLERANCE[rows], TOLERANCE[cache])
    for s, out in enumerate(case.whole()):
        torch.testing.assert_close(out.double(), case.expected(s), rtol=tolerance, atol=tolerance)


@needs_core
@settings(max_examples=40, deadline=None)
@given(**shapes)
def test_any_cut_into_steps_gives_the_same_bits(
    lengths, n_heads, rank, rope_dim, rows, cache, garbage, window, seed
) -> None:
    args = (lengths, n_heads, rank, rope_dim, seed, rows, cache, garbage, window)
    whole = Sequences(native(), *args).whole()
    threads = core.native().threads()
    try:
        core.native().set_threads(1 + seed % 3)
        pieces = cut(Sequences(native(), *args), seed)
    finally:
        core.native().set_threads(threads)
    for one, other in zip(whole, pieces, strict=True):
        assert torch.equal(one, other)


@needs_core
def test_heads_of_a_full_size_model_in_groups_and_rows_of_many_sequences_are_those_alone() -> None:
    """128 heads are taken in 1 group for a decode and in 8 for a chunk."""
    lengths = [17 * i % 190 + 2 for i in range(9)]
    args = (lengths, 128, 64, 8, 3, BF16, BF16)
    whole, case = Sequences(native(), *args).whole(), Sequences(native(), *args)
    for s, length in enumerate(lengths):
        case.step([(s, 0, length - 1)])
    for s, out in enumerate(case.step([(s, length - 1, length) for s, length in enumerate(lengths)])):
        assert torch.equal(out, whole[s][-1:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_layers_and_other_blocks_stay_untouched(backend) -> None:
    case = Sequences(backend(), [40], 2, 12, 4, garbage=7.0)
    before = case.memory.clone()
    case.step([(0, 0, 3)])
    assert (case.memory != before).sum() == 3 * 16


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cache_of_another_layout_is_refused(backend) -> None:
    bind, spec = backend().latent.bind, LatentKV(12, 4, 4)
    bind(torch.zeros(4, 32 * 16), spec)
    for cache in (torch.zeros(4, 32 * 15), torch.zeros(32 * 16, 4).T, torch.zeros(4, 32 * 16, dtype=BF16)):
        with pytest.raises(EngineError, match="does not fit LatentKV"):
            bind(cache, spec)


@needs_core
def test_a_cache_that_the_core_cannot_read_is_refused() -> None:
    with pytest.raises(EngineError, match="no native layout"):
        native().latent.bind(torch.zeros(4, 32 * 16).half(), LatentKV(12, 4, 2))
    with pytest.raises(EngineError, match="no native layout"):
        native().latent.bind(torch.zeros(4, 32 * 15, dtype=BF16), LatentKV(12, 3, 2))


@needs_core
@settings(max_examples=40, deadline=None)
@given(
    n_rows=st.sampled_from([1, 2, 7, 33, 65, 130]),
    n_heads=st.sampled_from([1, 3, 8]),
    n_in=st.sampled_from([2, 5, 16, 40]),
    n_out=st.sampled_from([1, 31, 32, 50]),
    dtype=st.sampled_from([F32, BF16]),
    seed=st.integers(0, 1 << 30),
)
def test_products_head_by_head_equal_the_reference_and_each_row_alone(
    n_rows, n_heads, n_in, n_out, dtype, seed
) -> None:
    from headrace.ops.native.latent import PER_HEAD as native_heads

    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(n_heads * n_out, n_in, generator=rng).to(dtype)
    # Heads of a wider row.
    x = torch.randn(n_rows, n_heads * n_in + 3, generator=rng).to(dtype)[:, 2:-1].unflatten(1, (n_heads, n_in))
    storage = native_heads.storage(n_heads)
    packed = storage.empty(tuple(weight.shape), dtype, torch.device("cpu"))
    storage.fill(packed, 0, weight[: n_out // 2])
    storage.fill(packed, n_out // 2, weight[n_out // 2 :])
    got = native_heads.apply(x, packed)
    expected = torch.einsum("thk,hnk->thn", x.double(), weight.double().unflatten(0, (n_heads, n_out)))
    torch.testing.assert_close(got.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    torch.testing.assert_close(got, PER_HEAD.apply(x, weight), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    row = seed % n_rows
    assert torch.equal(native_heads.apply(x[row : row + 1], packed)[0], got[row])
    with pytest.raises(EngineError, match="does not fit"):
        native_heads.apply(x[:, :, 1:], packed)
