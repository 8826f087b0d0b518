"""Rows that see keys other than their own past: spans, cross-attention, encoders. Both backends, against the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attention_oracle import SCALE, Form
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.errors import EngineError
from headrace.core.plan import BLOCK_TOKENS
from headrace.ops.batch import Batch, GroupBatch
from headrace.ops.native import core
from headrace.ops.table import select_ops

F32, BF16 = torch.float32, torch.bfloat16
TOLERANCE = {F32: 1e-5, BF16: 3e-2}
NAMES = ("reference", "native") if core.is_available() else ("reference",)
OPS = {name: select_ops("cpu", F32, name) for name in NAMES}


class Keys:
    """Some sequences' keys in a cache full of garbage, and rows that see ranges of them."""

    def __init__(self, counts: list[int], form: Form, n_kv: int, shared: int, dim: int, seed: int, dtype: torch.dtype,
                 ops: Any) -> None:  # fmt: skip
        rng = torch.Generator().manual_seed(seed)

        def noise(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=rng).to(dtype)

        v_dim = form.v_dim or dim
        self.counts, self.form, self.backend = counts, form, ops.attention
        self.spec = form.spec(n_kv, dim, dtype)
        self.sinks = form.sinks_of(n_kv * shared, seed, dtype)
        self.k, self.v = ([noise(n, n_kv, width) for n in counts] for width in (dim, v_dim))
        widths = [-(-n // BLOCK_TOKENS) for n in counts]
        order = torch.randperm(sum(widths), generator=rng).tolist()
        self.table = torch.full((len(counts), max(widths)), 1 << 30, dtype=torch.int32)
        for s, width in enumerate(widths):
            self.table[s, :width] = torch.tensor([order.pop() for _ in range(width)])
        memory = torch.full((sum(widths), n_kv * BLOCK_TOKENS * (dim + v_dim)), torch.nan, dtype=dtype)
        self.cache = self.backend.bind(memory, self.spec)
        self.rows = [int(torch.randint(0, 20, (), generator=rng)) for _ in counts]
        self.q = [noise(n, n_kv * shared, dim) for n in self.rows]
        self.ranges = [self._ranges(n, count, rng) for n, count in zip(self.rows, counts, strict=True)]
        where = [self.table[s, p // 32].long() * 32 + p % 32 for s, n in enumerate(counts) for p in [torch.arange(n)]]
        self.backend.write(torch.cat(self.k), torch.cat(self.v), self.cache, self._plan([], torch.cat(where)))

    @staticmethod
    def _ranges(n_rows: int, n_keys: int, rng: torch.Generator) -> torch.Tensor:
        """Of any length, some empty."""
        ends = torch.randint(0, n_keys + 1, (n_rows, 2), generator=rng).sort(1).values
        return torch.where(torch.rand(n_rows, 1, generator=rng) < 0.2, ends.flip(1), ends)

    def _plan(self, parts: list[tuple[int, int, int]], where: torch.Tensor) -> Any:
        counts = [last - first for _, first, last in parts]
        ranges = [self.ranges[s][first:last] for s, first, last in parts]
        batch = Batch(
            input_ids=torch.zeros(sum(counts), dtype=torch.int64),
            positions=torch.zeros(sum(counts), dtype=torch.int64),
            query_starts=torch.tensor([0, *counts]).cumsum(0),
            seq_lens=torch.full((len(parts),), 1 << 20),
            groups=(
                GroupBatch(
                    self.table[[s for s, _, _ in parts]],
                    where,
                    torch.cat(ranges) if parts else torch.empty(0, 2, dtype=torch.int64),
                ),
            ),
        )
        return self.backend.plan(batch, 0, self.spec)

    def step(self, parts: list[tuple[int, int, int]]) -> list[torch.Tensor]:
        """Rows [first, last) of sequences, together: [(sequence, first, last)] -> their outputs."""
        q = torch.cat([self.q[s][first:last] for s, first, last in parts])
        metadata = self._plan(parts, torch.empty(0, dtype=torch.int64))
        out = self.backend.attend(q, self.cache, metadata, scale=SCALE, soft_cap=self.form.soft_cap, sinks=self.sinks)
        return list(out.split([last - first for _, first, last in parts]))

    def add_where_seen(self, x: torch.Tensor, y: torch.Tensor, parts: list[tuple[int, int, int]]) -> torch.Tensor:
        metadata = self._plan(parts, torch.empty(0, dtype=torch.int64))
        return self.backend.add_where_seen(x, y, 0.3, metadata)

    def whole(self) -> list[torch.Tensor]:
        return self.step([(s, 0, n) for s, n in enumerate(self.rows)])

    def expected(self, s: int) -> torch.Tensor:
        return self.form.expected(self.q[s], self.k[s], self.v[s], self.ranges[s], self.sinks)


FORMS = st.builds(
    Form, v_dim=st.sampled_from([None, 7, 32]), soft_cap=st.sampled_from([None, 2.0]), sinks=st.booleans()
)
SHAPES = {
    "counts": st.lists(st.sampled_from([1, 5, 32, 33, 300, 700]), min_size=1, max_size=3),
    "form": FORMS,
    "n_kv": st.sampled_from([1, 3]),
    "shared": st.sampled_from([1, 3]),
    "dim": st.sampled_from([4, 20, 32]),
    "seed": st.integers(0, 1 << 30),
    "dtype": st.sampled_from([F32, BF16]),
}


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, deadline=None)
@given(**SHAPES)
def test_any_ranges_equal_the_oracle_and_a_row_that_sees_nothing_gives_zeros(name, counts, form, n_kv, shared, dim,
                                                                             seed, dtype):  # fmt: skip
    case = Keys(counts, form, n_kv, shared, dim, seed, dtype, OPS[name])
    if not sum(case.rows):
        return
    for s, out in enumerate(case.whole()):
        if case.rows[s]:
            torch.testing.assert_close(out.double(), case.expected(s), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
            blind = case.ranges[s][:, 0] >= case.ranges[s][:, 1]
            assert not out[blind].any()


@pytest.mark.skipif(not core.is_available(), reason=f"no native core: {core.reason()}")
@settings(max_examples=30, deadline=None)
@given(**SHAPES)
def test_a_row_alone_gives_the_same_bits(counts, form, n_kv, shared, dim, seed, dtype):
    case = Keys(counts, form, n_kv, shared, dim, seed, dtype, OPS["native"])
    if not sum(case.rows):
        return
    for s, out in enumerate(case.whole()):
        for row in range(case.rows[s]):
            assert torch.equal(case.step([(s, row, row + 1)])[0], out[row : row + 1])


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20, deadline=None)
@given(width=st.sampled_from([1, 15, 16, 33, 64]), dtype=st.sampled_from([F32, BF16]), seed=st.integers(0, 1 << 30))
def test_a_branch_is_added_to_rows_that_see_something_and_to_no_other(name, width, dtype, seed):
    case = Keys([40, 70, 1], Form(), 1, 1, 8, seed, F32, OPS[name])
    if not (total := sum(case.rows)):
        return
    rng = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(total, 2 * width, generator=rng).to(dtype)[:, :width] for _ in range(2))
    ranges = torch.cat(case.ranges)
    blind = ranges[:, 0] >= ranges[:, 1]
    # What a row does not see may be anything; and a zero keeps its sign.
    y[blind], x[blind] = torch.nan, -0.0
    parts = [(s, 0, n) for s, n in enumerate(case.rows)]
    got = case.add_where_seen(x, y, parts)
    assert got[blind].equal(x[blind])
    assert got[blind].signbit().all()
    wanted = (x[~blind].double() + 0.3 * y[~blind].double()).to(dtype)
    torch.testing.assert_close(got[~blind], wanted, rtol=2**-7 if dtype == BF16 else 2e-6, atol=1e-6)
    places = [(s, row, row + 1) for s, n in enumerate(case.rows) for row in range(n)]
    for at, place in enumerate(places):
        alone = case.add_where_seen(x[at : at + 1].clone(), y[at : at + 1].clone(), [place])
        assert alone.equal(got[at : at + 1])


@pytest.mark.parametrize("name", NAMES)
def test_keys_that_the_table_has_not_are_refused(name: str) -> None:
    case = Keys([40], Form(), 1, 1, 8, 0, F32, OPS[name])
    case.q = [torch.randn(1, 1, 8)]
    for wrong in ([[0, 65]], [[-1, 3]]):
        case.ranges = [torch.tensor(wrong)]
        with pytest.raises(EngineError, match="the table has 64"):
            case.step([(0, 0, 1)])
    case.ranges = [torch.tensor([[0, 3]], dtype=torch.int32)]
    with pytest.raises(EngineError, match="int64"):
        case.step([(0, 0, 1)])


def encoder_case(lengths: list[int], dtype: torch.dtype, seed: int, v_dim: int) -> tuple[torch.Tensor, ...]:
    rng = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    q, k, v = (torch.randn(total, h, d, generator=rng).to(dtype) for h, d in ((6, 20), (2, 20), (2, v_dim)))
    return q, k, v, torch.tensor([0, *lengths]).cumsum(0)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 31, 32, 65, 130, 200]), min_size=1, max_size=4),
    dtype=st.sampled_from([F32, BF16]),
    seed=st.integers(0, 1 << 30),
    v_dim=st.sampled_from([20, 33]),
)
def test_rows_of_an_encoder_see_their_whole_sequence(name, lengths, dtype, seed, v_dim):
    op: Callable[..., torch.Tensor] = OPS[name].encoder_attention
    q, k, v, starts = encoder_case(lengths, dtype, seed, v_dim)
    out = op(q, k, v, starts, scale=SCALE)
    for first, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        if first < end:
            everything = torch.tensor([[0, end - first]]).expand(end - first, 2)
            expected = Form().expected(q[first:end], k[first:end], v[first:end], everything, None)
            tolerance = TOLERANCE[dtype]
            torch.testing.assert_close(out[first:end].double(), expected, rtol=tolerance, atol=tolerance)
            alone = op(q[first:end], k[first:end], v[first:end], torch.tensor([0, end - first]), scale=SCALE)
            assert torch.equal(alone, out[first:end])


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([1, 31, 65, 300]), min_size=1, max_size=3),
    dtype=st.sampled_from([F32, BF16]),
    seed=st.integers(0, 1 << 30),
)
def test_rows_of_an_encoder_may_see_a_part_of_their_sequence(name, lengths, dtype, seed):
    op: Callable[..., torch.Tensor] = OPS[name].encoder_attention
    q, k, v, starts = encoder_case(lengths, dtype, seed, 20)
    rng = torch.Generator().manual_seed(seed)
    first = torch.cat([torch.randint(0, n, (n,), generator=rng) for n in lengths])
    last = torch.cat([torch.full((n,), n) for n in lengths])
    ranges = torch.stack((first, torch.minimum(first + 1 + 7 * first, last)), 1)
    out = op(q, k, v, starts, scale=SCALE, ranges=ranges)
    for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        rows = slice(begin, end)
        expected = Form().expected(q[rows], k[rows], v[rows], ranges[rows], None)
        torch.testing.assert_close(out[rows].double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    alone = op(q[rows], k[rows], v[rows], torch.tensor([0, lengths[-1]]), scale=SCALE, ranges=ranges[rows])
    assert alone.equal(out[rows])


@pytest.mark.parametrize("name", NAMES)
def test_starts_that_do_not_fit_the_rows_are_refused(name: str) -> None:
    q, k, v, _ = encoder_case([10], F32, 0, 20)
    for wrong in ([0, 9], [1, 10], [0, 12, 10]):
        with pytest.raises(EngineError, match="starts must rise"):
            OPS[name].encoder_attention(q, k, v, torch.tensor(wrong), scale=SCALE)
