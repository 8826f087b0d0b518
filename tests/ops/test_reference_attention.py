"""Reference attention against a row-by-row oracle in fp64, over caches that are full of garbage."""

from __future__ import annotations

import pytest
import torch
from attention_oracle import FP8, INT8, SCALE, Form, forms, garbage_cache, kept
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.cache.specs import FullKV
from headrace.core.errors import EngineError
from headrace.core.plan import BLOCK_TOKENS
from headrace.ops.batch import Batch, GroupBatch
from headrace.ops.reference import attention
from headrace.ops.reference.attention import BACKEND

N_LAYERS = 3
NO_BLOCK = 1 << 30


def arena(n_blocks: int, numbers: int, padding: int, garbage: float, dtype: torch.dtype) -> torch.Tensor:
    """A group's cache [n_blocks, N_LAYERS, numbers] with ``padding`` values between blocks, all garbage."""
    block = N_LAYERS * numbers + padding
    memory = garbage_cache((n_blocks * block,), garbage, dtype)
    return memory.as_strided((n_blocks, N_LAYERS, numbers), (block, numbers, 1))


class Case:
    """Sequences with a past in the cache and some new rows each."""

    def __init__(self, rows: list[tuple[int, int]], form: Form, n_kv: int, shared: int, dim: int, seed: int,
                 padding: int = 0, garbage: float = torch.nan, dtype: torch.dtype = torch.float32,
                 cache: torch.dtype | None = None) -> None:  # fmt: skip
        self.cache_dtype = cache or dtype
        rng = torch.Generator().manual_seed(seed)

        def noise(length: int, heads: int, width: int) -> torch.Tensor:
            return torch.randn((length, heads, width), generator=rng).to(dtype)

        self.lengths = [past + new for past, new in rows]
        self.new = [new for _, new in rows]
        self.form = form
        self.spec = form.spec(n_kv, dim, self.cache_dtype)
        self.sinks = form.sinks_of(n_kv * shared, seed, dtype)
        v_dim = form.v_dim or dim
        self.k = [noise(length, n_kv, dim) for length in self.lengths]
        self.v = [noise(length, n_kv, v_dim) for length in self.lengths]
        self.q = [noise(new, n_kv * shared, dim) for new in self.new]
        widths = [-(-length // BLOCK_TOKENS) for length in self.lengths]
        n_blocks = 1 + sum(widths)
        numbers = self.spec.bytes_per_block // self.cache_dtype.itemsize
        self.cache = arena(n_blocks, numbers, padding, garbage, self.cache_dtype)[:, 1]
        bound = BACKEND.bind(self.cache, self.spec)
        order = (1 + torch.randperm(n_blocks - 1, generator=rng)).tolist()
        # Columns that hold nothing for a sequence name a block that does not exist.
        self.table = torch.full((len(rows), max(widths)), NO_BLOCK, dtype=torch.int32)
        for s, width in enumerate(widths):
            self.table[s, :width] = torch.tensor([order.pop() for _ in range(width)])
            past = torch.arange(self.lengths[s] - self.new[s])
            places = attention.Metadata(self.table[s, past // 32].long(), past % 32, (), torch.ones(0, 1))
            BACKEND.write(self.k[s][: len(past)], self.v[s][: len(past)], bound, places)
            first = self.spec.needed_from(self.lengths[s] - self.new[s])
            self.table[s, : first // BLOCK_TOKENS] = NO_BLOCK

    def run(self, which: list[int]) -> list[torch.Tensor]:
        """The new rows of the sequences in ``which``, together."""
        positions = [torch.arange(self.lengths[s] - self.new[s], self.lengths[s]) for s in which]
        where = [self.table[s, p // 32].long() * 32 + p % 32 for s, p in zip(which, positions, strict=True)]
        counts = torch.tensor([0] + [self.new[s] for s in which])
        batch = Batch(
            input_ids=torch.zeros(int(counts.sum()), dtype=torch.int64),
            positions=torch.cat(positions),
            query_starts=counts.cumsum(0),
            seq_lens=torch.tensor([self.lengths[s] for s in which]),
            groups=(GroupBatch(self.table[which], torch.cat(where)),),
        )
        metadata = BACKEND.plan(batch, 0, self.spec)
        new = [(self.k[s][-self.new[s] :], self.v[s][-self.new[s] :]) for s in which]
        k, v = torch.cat([k for k, _ in new]), torch.cat([v for _, v in new])
        q = torch.cat([self.q[s] for s in which])
        cache = BACKEND.bind(self.cache, self.spec)
        BACKEND.write(k, v, cache, metadata)
        sinks = None if self.sinks is None else self.sinks.to(q.dtype)
        out = BACKEND.attend(q, cache, metadata, scale=SCALE, soft_cap=self.form.soft_cap, sinks=sinks)
        assert out.dtype == q.dtype
        return list(out.split([self.new[s] for s in which]))

    def expected(self, s: int) -> torch.Tensor:
        ranges = self.form.ranges(torch.arange(self.lengths[s] - self.new[s], self.lengths[s]))
        k, v = (kept(x[s], self.cache_dtype) for x in (self.k, self.v))
        return self.form.expected(self.q[s], k, v, ranges, self.sinks)


rows_of = st.lists(
    st.tuples(st.integers(0, 150), st.sampled_from([1, 1, 1, 2, 5, 5, 31, 32, 33, 70])), min_size=1, max_size=6
)


@settings(max_examples=60, deadline=None)
@given(
    rows=rows_of,
    form=forms,
    n_kv=st.sampled_from([1, 2, 3]),
    shared=st.sampled_from([1, 2, 3]),
    dim=st.sampled_from([4, 12, 20]),
    padding=st.sampled_from([0, 4, 36]),
    garbage=st.sampled_from([torch.nan, torch.inf, -torch.inf, 1e30]),
    cache=st.sampled_from([torch.float32, torch.float32, INT8, FP8]),
    seed=st.integers(0, 1 << 30),
)
def test_any_mix_of_rows_equals_the_oracle_and_garbage_never_leaks(
    rows, form, n_kv, shared, dim, padding, garbage, cache, seed
):
    case = Case(rows, form, n_kv, shared, dim, seed, padding, garbage, cache=cache)
    for s, out in enumerate(case.run(list(range(len(rows))))):
        torch.testing.assert_close(out.double(), case.expected(s), rtol=0, atol=2e-5)


@pytest.mark.parametrize("area", [1 << 6, 1 << 10, 1 << 13])
@pytest.mark.parametrize("form", [Form(), Form(window=40), Form(chunk=40, v_dim=20, sinks=True)])
def test_a_long_chunk_cut_into_tiles_is_the_same(monkeypatch, area, form):
    monkeypatch.setattr(attention, "MAX_TILE_AREA", area)
    case = Case([(100, 150), (0, 90), (7, 1)], form, 2, 2, 12, seed=1)
    for s, out in enumerate(case.run([0, 1, 2])):
        torch.testing.assert_close(out.double(), case.expected(s), rtol=0, atol=2e-5)


def test_a_row_does_not_depend_on_strangers_or_their_order():
    rows = [(90, 1), (3, 40), (60, 4), (0, 1), (140, 1)]
    together = Case(rows, Form(window=50), 2, 2, 12, seed=2).run([3, 1, 4, 0, 2])
    for place, s in enumerate([3, 1, 4, 0, 2]):
        alone = Case(rows, Form(window=50), 2, 2, 12, seed=2).run([s])[0]
        torch.testing.assert_close(together[place], alone, rtol=0, atol=1e-6)


def test_keys_of_the_current_rows_are_read_back_in_cache_dtype():
    case = Case([(0, 20)], Form(), 1, 1, 16, seed=3, dtype=torch.bfloat16)
    case.q = [q.float() for q in case.q]
    case.k = [k.float() + 1e-3 for k in case.k]  # not representable in bf16: the oracle must round them first
    out = case.run([0])[0]
    case.k = [k.bfloat16() for k in case.k]
    torch.testing.assert_close(out.double(), case.expected(0), rtol=0, atol=1e-5)


def test_other_layers_and_other_blocks_stay_untouched():
    case = Case([(40, 3)], Form(v_dim=10), 2, 2, 12, seed=4, garbage=7.0)
    whole = case.cache._base if case.cache._base is not None else case.cache
    before = whole.clone()
    case.run([0])
    changed = (whole != before).nonzero().shape[0]
    assert changed == 3 * 2 * (12 + 10)


def test_a_cache_of_another_layout_is_refused():
    spec = FullKV(3, 8, 4)
    good = torch.zeros(4, 2 * 3 * BLOCK_TOKENS * 8)
    BACKEND.bind(good, spec)
    for wrong in (good[:, ::2], good[:, 1:], good.view(4, 2, -1)):
        with pytest.raises(EngineError, match="dense blocks"):
            BACKEND.bind(wrong, spec)
