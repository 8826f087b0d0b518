"""Native attention: against a row-by-row oracle in fp64, and to the bit against itself however a step is cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_oracle import FP8, INT8, SCALE, Form, forms, garbage_cache, kept
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.cache.specs import FullKV
from headrace.core.errors import EngineError
from headrace.core.plan import BLOCK_TOKENS
from headrace.ops.batch import Batch, GroupBatch
from headrace.ops.native import core
from headrace.ops.reference import attention as reference

pytestmark = pytest.mark.skipif(not core.is_available(), reason=f"no native core: {core.reason()}")
if core.is_available():
    from headrace.ops.native.attention import BACKEND

NO_BLOCK = 1 << 30
N_LAYERS = 2
F32, BF16 = torch.float32, torch.bfloat16
TOLERANCE = {F32: 1e-5, BF16: 3e-2, INT8: 1e-3, FP8: 3e-2}
"""Of outputs of about 1. A score of some tens is good to 2e-6 in fp32, and stands in an exponent; bf16 rounds queries,
weights and output, and so does fp8. Over int8 queries and weights have 16 bits."""


class Sequences:
    """Random rows of several sequences, and a cache full of garbage that steps write into and read from."""

    def __init__(self, lengths: list[int], form: Form, n_kv: int, shared: int, dim: int, seed: int = 0,
                 rows: torch.dtype = F32, cache: torch.dtype = F32, garbage: float = torch.nan) -> None:  # fmt: skip
        self.backend: Any = BACKEND
        rng = torch.Generator().manual_seed(seed)

        def noise(length: int, heads: int, width: int) -> torch.Tensor:
            return torch.randn((length, heads, width), generator=rng).to(rows)

        self.lengths, self.form, self.cache_dtype = lengths, form, cache
        self.spec = form.spec(n_kv, dim, cache)
        self.sinks = form.sinks_of(n_kv * shared, seed, rows)
        v_dim = form.v_dim or dim
        self.q = [noise(length, n_kv * shared, dim) for length in lengths]
        self.k = [noise(length, n_kv, dim) for length in lengths]
        self.v = [noise(length, n_kv, v_dim) for length in lengths]
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
        table = self.table[[s for s, _, _ in parts]].clone()
        for row, (_, first, _) in enumerate(parts):
            table[row, : self.spec.needed_from(first) // BLOCK_TOKENS] = NO_BLOCK
        where = [self.table[s, p // 32].long() * 32 + p % 32 for (s, _, _), p in zip(parts, positions, strict=True)]
        counts = torch.tensor([0] + [last - first for _, first, last in parts])
        batch = Batch(
            input_ids=torch.zeros(int(counts.sum()), dtype=torch.int64),
            positions=torch.cat(positions),
            query_starts=counts.cumsum(0),
            seq_lens=torch.tensor([last for _, _, last in parts]),
            groups=(GroupBatch(table, torch.cat(where)),),
        )
        q, k, v = (torch.cat([x[s][first:last] for s, first, last in parts]) for x in (self.q, self.k, self.v))
        # As a model hands them over: heads of one wide row.
        wide = torch.cat([x.flatten(1) for x in (q, k, v)], 1)
        q, k, v = (
            part.unflatten(1, x.shape[1:])
            for part, x in zip(wide.split([x[0].numel() for x in (q, k, v)], 1), (q, k, v), strict=True)
        )
        backend = self.backend
        metadata = backend.plan(batch, 0, self.spec)
        cache = backend.bind(self.memory[:, 1], self.spec)
        backend.write(k, v, cache, metadata)
        out = backend.attend(q, cache, metadata, scale=SCALE, soft_cap=self.form.soft_cap, sinks=self.sinks)
        assert out.dtype == q.dtype
        return list(out.split([last - first for _, first, last in parts]))

    def whole(self) -> list[torch.Tensor]:
        """Every sequence in one piece, alone."""
        return [self.step([(s, 0, length)])[0] for s, length in enumerate(self.lengths)]

    def expected(self, s: int) -> torch.Tensor:
        k, v = (kept(x[s], self.cache_dtype) for x in (self.k, self.v))
        ranges = self.form.ranges(torch.arange(self.lengths[s]))
        return self.form.expected(self.q[s], k, v, ranges, self.sinks)


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
    "lengths": st.lists(st.sampled_from([1, 2, 31, 32, 33, 70, 129, 200, 300, 600]), min_size=1, max_size=4),
    "form": forms,
    "n_kv": st.sampled_from([1, 2, 3]),
    "shared": st.sampled_from([1, 2, 3, 7]),
    "dim": st.sampled_from([4, 12, 20, 24, 32, 40, 64]),
    "rows": st.sampled_from([F32, BF16]),
    "cache": st.sampled_from([F32, BF16, INT8, FP8]),
    "garbage": st.sampled_from([torch.nan, torch.inf, -torch.inf, 1e30]),
    "seed": st.integers(0, 1 << 30),
}


@settings(max_examples=40, deadline=None)
@given(**shapes)
def test_any_shape_equals_the_oracle_and_garbage_never_leaks(
    lengths, form, n_kv, shared, dim, rows, cache, garbage, seed
):
    case = Sequences(lengths, form, n_kv, shared, dim, seed, rows, cache, garbage)
    for s, out in enumerate(case.whole()):
        tolerance = max(TOLERANCE[rows], TOLERANCE[cache])
        torch.testing.assert_close(out.double(), case.expected(s), rtol=tolerance, atol=tolerance)


@settings(max_examples=40, deadline=None)
@given(**shapes)
def test_any_cut_into_steps_gives_the_same_bits(lengths, form, n_kv, shared, dim, rows, cache, garbage, seed):
    whole = Sequences(lengths, form, n_kv, shared, dim, seed, rows, cache, garbage).whole()
    threads = core.native().threads()
    try:
        core.native().set_threads(1 + seed % 3)
        pieces = cut(Sequences(lengths, form, n_kv, shared, dim, seed, rows, cache, garbage), seed)
    finally:
        core.native().set_threads(threads)
    for one, other in zip(whole, pieces, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("which", ["k", "v"])
@pytest.mark.parametrize(("rows", "cache"), [(F32, F32), (BF16, BF16), (F32, INT8), (BF16, FP8)])
@pytest.mark.parametrize("form", [Form(), Form(window=9), Form(chunk=24)])
def test_what_is_not_finite_is_seen_by_those_rows_alone_that_may_see_it(form, rows, cache, which) -> None:
    """Row 37 lies in a tile with rows before it; a weight of zero would not keep it from them."""
    clean = Sequences([90], form, 2, 3, 32, cache=cache, rows=rows).whole()[0]
    case = Sequences([90], form, 2, 3, 32, cache=cache, rows=rows)
    columns = slice(5, 6) if cache in (INT8, FP8) else slice(None)
    getattr(case, which)[0][37, :, columns] = torch.inf if which == "v" else torch.nan
    out = case.whole()[0]
    first, end = form.ranges(torch.arange(90)).unbind(1)
    seeing = (first <= 37) & (end > 37)
    assert torch.equal(out[~seeing], clean[~seeing])
    assert not out[seeing].isfinite().any()


def test_many_sequences_at_once_give_the_bits_of_each_alone() -> None:
    lengths = [17 * i % 190 + 1 for i in range(40)]
    form = Form(window=50, v_dim=24, soft_cap=5.0, sinks=True)
    whole = Sequences(lengths, form, 2, 3, 20, cache=BF16, rows=BF16).whole()
    case = Sequences(lengths, form, 2, 3, 20, cache=BF16, rows=BF16)
    for s, length in enumerate(lengths):
        if length > 1:
            case.step([(s, 0, length - 1)])
    for s, out in enumerate(case.step([(s, length - 1, length) for s, length in enumerate(lengths)])):
        assert torch.equal(out, whole[s][-1:])


def test_other_layers_and_other_blocks_stay_untouched() -> None:
    case = Sequences([40], Form(v_dim=10), 2, 2, 12, garbage=7.0)
    before = case.memory.clone()
    case.step([(0, 0, 3)])
    assert (case.memory != before).sum() == 3 * 2 * (12 + 10)


def test_a_cache_of_another_layout_is_refused() -> None:
    spec = FullKV(3, 8, 4)
    good = torch.zeros(4, 2 * 3 * BLOCK_TOKENS * 8)
    BACKEND.bind(good, spec)
    with pytest.raises(EngineError, match="dense blocks"):
        BACKEND.bind(good, FullKV(3, 8, 4, v_head_dim=4))
    with pytest.raises(EngineError, match="numbers of 4 bytes"):
        BACKEND.bind(good.half(), spec)
    with pytest.raises(EngineError, match="native layout"):
        BACKEND.bind(good.half(), FullKV(3, 8, 2))
    with pytest.raises(EngineError, match="dense blocks"):
        BACKEND.bind(good.view(INT8)[:, : 2 * 3 * BLOCK_TOKENS * 8], FullKV(3, 8, 1))
    with pytest.raises(EngineError, match="native layout"):
        BACKEND.bind(good[:, : 2 * 3 * BLOCK_TOKENS * 7].bfloat16(), FullKV(3, 7, 2))


@pytest.mark.parametrize("cache", [INT8, FP8])
@pytest.mark.parametrize("rows", [F32, BF16])
def test_one_key_alone_is_what_was_kept_of_it(rows, cache) -> None:
    """Of all sizes that a model can have, zeros, and numbers between two that can be kept."""
    case = Sequences([12], Form(window=1), 1, 1, 40, cache=cache, rows=rows)
    v = case.v[0]
    v *= torch.tensor([1e-45, 1e-38, 1e-15, 1e-9, 1, 1, 1, 1e3, 1e9, 1e15, 1e18, 1e20]).view(-1, 1, 1)
    v[4] = 0
    v[5, :, 1:] = 0
    v[6] = torch.linspace(-0.02, 0.02, 40)
    v[6, 0, 0] = 448.0
    v[7] = torch.arange(40) * 2.5
    v[7, 0, 0] = 127.0
    expected = kept(v, cache)
    out = case.whole()[0].double()
    tolerance = 1e-6 if rows == F32 and cache == INT8 else 8e-3
    largest = expected.abs().amax(-1, keepdim=True)
    assert ((out - expected).abs() <= tolerance * largest + 1e-30).all()
    assert (out[4] == 0).all()


@pytest.mark.parametrize("cache", [INT8, FP8])
@settings(max_examples=15, deadline=None)
@given(**{name: shapes[name] for name in ("lengths", "form", "n_kv", "shared", "dim", "garbage", "seed")})
def test_numbers_of_one_byte_are_near_the_reference(cache, lengths, form, n_kv, shared, dim, garbage, seed) -> None:
    case = Sequences(lengths, form, n_kv, shared, dim, seed, F32, cache, garbage)
    native = case.whole()
    case.backend = reference.BACKEND
    for one, other in zip(native, case.whole(), strict=True):
        torch.testing.assert_close(one, other, rtol=TOLERANCE[cache], atol=TOLERANCE[cache])
