"""Routers and experts: the reference against formulas in fp64, the native core beside it, at every level."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.errors import EngineError
from headrace.ops.moe import ExpertOps, ExpertsShape, Routing
from headrace.ops.native import core
from headrace.ops.reference import moe as reference
from headrace.quant.formats import BlockFormat, BlockRows

IMPLEMENTATIONS = {"reference": reference}
if core.is_available():
    from headrace.ops.native import block_linear, elementwise
    from headrace.ops.native import moe as native

    IMPLEMENTATIONS["native"] = native
needs_core = pytest.mark.skipif(not core.is_available(), reason=f"no native core: {core.reason()}")

F32, BF16 = torch.float32, torch.bfloat16
CPU = torch.device("cpu")


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Routers.


def chosen(scores: list[float], k: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]


def expected_sigmoid(
    logits: torch.Tensor, correction: torch.Tensor | None, k: int, n_groups: int, top_groups: int
) -> list[int]:
    """For one row."""
    scores = (logits if correction is None else logits.sigmoid() + correction).tolist()
    size = len(scores) // n_groups
    groups = [scores[i * size : (i + 1) * size] for i in range(n_groups)]
    kept = chosen([sum(sorted(group)[-2:]) for group in groups], top_groups) if n_groups > 1 else [0]
    return chosen([s if i // size in kept else -torch.inf for i, s in enumerate(scores)], k)


@pytest.mark.parametrize("how", IMPLEMENTATIONS)
@given(n_rows=st.integers(1, 20), n_experts=st.integers(1, 40), normalised=st.booleans(), data=st.data())
@settings(max_examples=40, deadline=None)
def test_softmax_takes_the_largest_logits_and_of_equals_the_first(how, n_rows, n_experts, normalised, data):
    k = data.draw(st.integers(1, n_experts))
    # Halves: many are equal.
    logits = (noise(n_rows, n_experts, seed=data.draw(st.integers(0, 99))) * 3).round() / 2
    got = IMPLEMENTATIONS[how].softmax_top_k(logits, k, normalised=normalised)
    assert (got.ids.dtype, got.weights.dtype) == (torch.int32, F32)
    assert got.ids.tolist() == [chosen(row, k) for row in logits.tolist()]
    want = logits.double().softmax(1).gather(1, got.ids.long())
    want = want / want.sum(1, keepdim=True) if normalised else want
    torch.testing.assert_close(got.weights.double(), want, rtol=2e-6, atol=1e-9)
    for row in range(n_rows):
        alone = IMPLEMENTATIONS[how].softmax_top_k(logits[row : row + 1].clone(), k, normalised=normalised)
        assert torch.equal(alone.ids[0], got.ids[row])
        assert how == "reference" or torch.equal(alone.weights[0], got.weights[row])


@pytest.mark.parametrize("how", IMPLEMENTATIONS)
@given(
    n_rows=st.integers(1, 20), groups=st.sampled_from([(1, 1), (2, 1), (4, 2), (4, 4), (8, 3)]),
    size=st.integers(2, 6), corrected=st.booleans(), normalised=st.booleans(), data=st.data(),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_sigmoid_keeps_to_the_best_groups(how, n_rows, groups, size, corrected, normalised, data):
    n_groups, top_groups = groups
    k, seed = data.draw(st.integers(1, top_groups * size)), data.draw(st.integers(0, 99))
    logits = (noise(n_rows, n_groups * size, seed=seed) * 3).round() / 2
    correction = (noise(n_groups * size, seed=seed + 1) * 0.3) if corrected else None
    options = {"normalised": normalised, "n_groups": n_groups, "top_groups": top_groups, "factor": 2.5}
    got = IMPLEMENTATIONS[how].sigmoid_top_k(logits, correction, k, **options)
    assert got.ids.tolist() == [expected_sigmoid(row, correction, k, n_groups, top_groups) for row in logits]
    want = logits.double().sigmoid().gather(1, got.ids.long())
    want = (want / want.sum(1, keepdim=True) if normalised else want) * 2.5
    torch.testing.assert_close(got.weights.double(), want, rtol=2e-6, atol=1e-9)


@needs_core
def test_a_row_of_nan_is_sent_somewhere_and_harms_itself_alone():
    logits = noise(4, 8)
    clean = native.softmax_top_k(logits, 3, normalised=True)
    logits[1], logits[2, 4] = torch.nan, torch.nan
    for got in (native.softmax_top_k(logits, 3, normalised=True), native.sigmoid_top_k(logits, noise(8), 3)):
        assert all(len(set(row)) == 3 and set(row) <= set(range(8)) for row in got.ids.tolist())
    got = native.softmax_top_k(logits, 3, normalised=True)
    assert torch.equal(got.weights[[0, 3]], clean.weights[[0, 3]])
    assert got.weights[1].isnan().all()


@needs_core
def test_routers_refuse_what_cannot_be():
    for wrong in (0, 9):
        with pytest.raises(ValueError, match="at least 1 and at most all"):
            native.softmax_top_k(noise(2, 8), wrong, normalised=True)
    for groups in ((3, 1), (4, 5), (8, 4), (4, 1)):
        with pytest.raises(ValueError, match="groups of experts"):
            native.sigmoid_top_k(noise(2, 8), None, 3, n_groups=groups[0], top_groups=groups[1])
    with pytest.raises(EngineError, match="float32"):
        native.softmax_top_k(noise(2, 8).bfloat16(), 2, normalised=True)


# Experts.


class Layer:
    """The experts of a layer, plain and as an implementation keeps them."""

    def __init__(self, shape: ExpertsShape, dtype: torch.dtype, *, bias: bool = False, seed: int = 0) -> None:
        self.shape, self.dtype = shape, dtype
        n = shape.n_experts
        first, second = (n * shape.gate_up, shape.size), (n * shape.size, shape.inner)
        self.plain = [(noise(*s, seed=seed + i) * s[1] ** -0.5).to(dtype) for i, s in enumerate((first, second))]
        sizes = (shape.gate_up, shape.size)
        self.biases = [noise(n, size, seed=seed + 5).to(dtype) for size in sizes] if bias else []

    def apply(self, ops: ExpertOps, x: torch.Tensor, routing: Routing) -> torch.Tensor:
        storage = ops.storage(self.shape.n_experts)
        kept = []
        for rows in self.plain:
            weight = storage.empty(tuple(rows.shape), self.dtype, CPU)
            # In two parts that meet within an expert.
            cut = rows.shape[0] // 2 + 1
            storage.fill(weight, cut, rows[cut:])
            storage.fill(weight, 0, rows[:cut])
            kept.append(weight)
        return ops.apply(x, routing, self.shape, *kept, *self.biases)

    def exact(self, x: torch.Tensor, routing: Routing) -> torch.Tensor:
        """In fp64, slot by slot; rounded between the products only where the dtype is bf16."""
        shape = self.shape
        first, second = (w.double().view(shape.n_experts, -1, w.shape[1]) for w in self.plain)
        b1, b2 = (b.double() for b in self.biases) if self.biases else (torch.zeros(shape.n_experts, 1).double(),) * 2
        rows = []
        for row, ids, weights in zip(x.double(), routing.ids.tolist(), routing.weights.double(), strict=True):
            total = torch.zeros(shape.size).double()
            for expert, weight in zip(ids, weights, strict=True):
                taken = (row * weight).to(self.dtype).double() if shape.scaled_input else row
                inner = activation(shape, (first[expert] @ taken + b1[expert]).to(self.dtype).double())
                output = second[expert] @ inner.to(self.dtype).double() + b2[expert]
                total += output if shape.scaled_input else output * weight
            rows.append(total)
        return torch.stack(rows)


def activation(shape: ExpertsShape, x: torch.Tensor) -> torch.Tensor:
    if shape.activation == "relu_squared":
        return x.clamp(min=0) ** 2
    gate, up = x.chunk(2)
    if shape.activation == "silu_mul":
        return gate * gate.sigmoid() * up
    if shape.activation == "gelu_tanh_mul":
        return torch.nn.functional.gelu(gate, approximate="tanh") * up
    gate = gate.clamp(max=shape.limit)
    return (up.clamp(-shape.limit, shape.limit) + 1) * gate * (1.702 * gate).sigmoid()


def routing(n_rows: int, n_experts: int, k: int, seed: int = 0) -> Routing:
    return reference.softmax_top_k(noise(n_rows, n_experts, seed=seed), k, normalised=True)


TOLERANCE = {F32: {"rtol": 2e-5, "atol": 2e-5}, BF16: {"rtol": 2**-6, "atol": 2**-5}}
"""bf16: a value between the products that lies near the middle of two may be rounded either way."""

shapes = st.builds(
    ExpertsShape,
    n_experts=st.integers(1, 9),
    size=st.sampled_from([8, 33, 60, 64]),
    inner=st.sampled_from([1, 24, 31, 64]),
    activation=st.sampled_from(sorted(reference.ACTIVATIONS)),
    limit=st.just(0.7),
    scaled_input=st.booleans(),
)


@pytest.mark.parametrize("how", IMPLEMENTATIONS)
@given(
    shape=shapes, n_rows=st.sampled_from([1, 2, 7, 40]), dtype=st.sampled_from([F32, BF16]), bias=st.booleans(),
    seed=st.integers(0, 99), data=st.data(),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_experts_are_those_of_double_precision(how, shape, n_rows, dtype, bias, seed, data):
    k = data.draw(st.integers(1, shape.n_experts))
    layer, x = Layer(shape, dtype, bias=bias, seed=seed), noise(n_rows, shape.size, seed=seed + 9).to(dtype)
    sent = routing(n_rows, shape.n_experts, k, seed)
    got = layer.apply(IMPLEMENTATIONS[how].EXPERTS, x, sent)
    assert (got.shape, got.dtype) == (x.shape, dtype)
    torch.testing.assert_close(got.double(), layer.exact(x, sent), **TOLERANCE[dtype])


@needs_core
@given(
    shape=shapes, n_rows=st.sampled_from([2, 9, 33, 130]), dtype=st.sampled_from([F32, BF16]), seed=st.integers(0, 99),
    data=st.data(),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_a_row_is_the_same_alone_in_any_company_and_on_any_number_of_threads(shape, n_rows, dtype, seed, data):
    k = data.draw(st.integers(1, shape.n_experts))
    layer, sent = Layer(shape, dtype, bias=True, seed=seed), routing(n_rows, shape.n_experts, k, seed)
    # Rows as they lie inside wider ones.
    x = noise(n_rows, 2 * shape.size, seed=seed).to(dtype)[:, : shape.size]

    def run(rows: slice | torch.Tensor) -> torch.Tensor:
        return layer.apply(native.EXPERTS, x[rows], Routing(sent.ids[rows], sent.weights[rows].contiguous()))

    before = core.native().threads()
    try:
        core.set_threads(2)
        together = run(slice(None))
        core.set_threads(1)
        assert torch.equal(together, run(slice(None)))
    finally:
        core.set_threads(before)
    order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(together[order], run(order))
    for row in {0, n_rows // 2, n_rows - 1}:
        assert torch.equal(together[row : row + 1], run(slice(row, row + 1)))


@needs_core
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_many_rows_take_several_passes_and_leave_no_trace(dtype):
    """Scratch is bounded: 1200 rows of this width are more than one pass takes."""
    layer = Layer(ExpertsShape(5, 4096, 8, "silu_mul", segments=4), dtype)
    x, sent = noise(1200, 4096).to(dtype), routing(1200, 5, 3)
    got = layer.apply(native.EXPERTS, x, sent)
    for first in (0, 340, 341, 342, 599, 600, 683, 1199):
        rows = slice(first, first + 1)
        alone = layer.apply(native.EXPERTS, x[rows], Routing(sent.ids[rows], sent.weights[rows]))
        assert torch.equal(alone, got[rows])
    torch.testing.assert_close(got[:3].double(), layer.exact(x[:3], Routing(sent.ids[:3], sent.weights[:3])),
                               **TOLERANCE[dtype])  # fmt: skip


FORMS = [
    BlockFormat(bits=8, offset=128),
    BlockFormat(bits=4, offset=8),
    BlockFormat(bits=4, offset=0, has_minimum=True),
    BlockFormat(bits=8, offset=32, group=16, has_wide_scales=True),
    BlockFormat(bits=4, offset=0, has_wide_scales=True, codes="e2m1"),
    BlockFormat(bits=8, offset=0, codes="e4m3"),
]


class BlockLayer:
    """Experts in blocks, as an implementation keeps them."""

    def __init__(self, ops: ExpertOps, shape: ExpertsShape, forms: tuple[BlockFormat, BlockFormat], seed: int) -> None:
        self.ops, self.shape = ops, shape
        rng = torch.Generator().manual_seed(seed)
        n, self.weights, self.rows = shape.n_experts, [], []
        for form, (n_out, n_in) in zip(forms, ((shape.gate_up, shape.size), (shape.size, shape.inner)), strict=True):
            numbers = torch.randint(0, 1 << form.bits, (n * n_out, n_in), dtype=torch.uint8, generator=rng)
            if form.codes == "e4m3":
                numbers[(numbers & 127) == 127] = 126  # no NaN
            size = (n * n_out, form.groups(n_in))
            scales, minima = (torch.randn(size, generator=rng).to(form.scale_dtype) / 64 for _ in range(2))
            self.rows.append(BlockRows(form, numbers, scales, minima if form.has_minimum else None))
            storage = ops.storage(n, form)
            weight = storage.empty((n * n_out, n_in), F32, CPU)
            cut = n * n_out // 2 + 1
            storage.fill(weight, cut, self.rows[-1][cut:])
            storage.fill(weight, 0, self.rows[-1][:cut])
            self.weights.append(weight)

    def apply(self, x: torch.Tensor, routing: Routing) -> torch.Tensor:
        return self.ops.apply(x, routing, self.shape, *self.weights)


@needs_core
@given(
    shape=shapes, n_rows=st.sampled_from([1, 9, 40]), first=st.sampled_from(FORMS), second=st.sampled_from(FORMS),
    seed=st.integers(0, 99), data=st.data(),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_experts_in_blocks_are_products_in_blocks_to_the_bit(shape, n_rows, first, second, seed, data):
    """With one slot of weight 1 nothing is added, and the result is that of three operators known by themselves."""
    shape = replace(shape, scaled_input=False)
    layer = BlockLayer(native.EXPERTS, shape, (first, second), seed)
    x = noise(n_rows, shape.size, seed=seed)
    ids = torch.tensor([[data.draw(st.integers(0, shape.n_experts - 1))] for _ in range(n_rows)], dtype=torch.int32)
    got = layer.apply(x, Routing(ids, torch.ones(n_rows, 1)))
    act = {"clamped_glu": lambda y: elementwise.clamped_glu(y, shape.limit)}.get(
        shape.activation, getattr(elementwise, shape.activation)
    )
    for row, (expert,) in enumerate(ids.tolist()):
        y = x[row : row + 1]
        for index, rows in enumerate(layer.rows):
            height = len(rows) // shape.n_experts
            ops = block_linear.NativeBlockLinear(rows.format)
            weight = ops.empty((height, rows.numbers.shape[1]), F32, CPU)
            ops.fill(weight, 0, rows[expert * height : (expert + 1) * height])
            y = ops.apply(y, weight, None)
            y = act(y) if index == 0 else y
        assert torch.equal(got[row : row + 1], y)


@needs_core
@given(
    shape=shapes, n_rows=st.sampled_from([2, 33]), first=st.sampled_from(FORMS), second=st.sampled_from(FORMS),
    seed=st.integers(0, 99), data=st.data(),
)  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_experts_in_blocks_are_near_the_reference_and_each_row_alone(shape, n_rows, first, second, seed, data):
    k = data.draw(st.integers(1, shape.n_experts))
    layer = BlockLayer(native.EXPERTS, shape, (first, second), seed)
    x, sent = noise(n_rows, shape.size, seed=seed), routing(n_rows, shape.n_experts, k, seed)
    got = layer.apply(x, sent)
    for row in range(n_rows):
        rows = slice(row, row + 1)
        assert torch.equal(layer.apply(x[rows], Routing(sent.ids[rows], sent.weights[rows])), got[rows])
    other = BlockLayer(reference.EXPERTS, shape, (first, second), seed).apply(x, sent)
    # Where activations differ in the last bit, a number of the inner rows may be rounded the other way: rarely, and by
    # a step of 1 / 127. An activation of what is far below zero may be nothing in one and next to nothing in the other.
    apart, largest = (got - other).abs(), other.abs().max() + 1e-8
    assert apart.median() <= 1e-5 * largest
    assert apart.max() <= 0.05 * largest


@needs_core
def test_what_does_not_fit_is_refused():
    shape = ExpertsShape(4, 16, 8, "silu_mul")
    layer, x, sent = Layer(shape, F32), noise(3, 16), routing(3, 4, 2)
    for wrong in (-1, 4):
        ids = sent.ids.clone()
        ids[2, 1] = wrong
        with pytest.raises(IndexError, match="none of the experts"):
            layer.apply(native.EXPERTS, x, Routing(ids, sent.weights))
    with pytest.raises(EngineError, match="do not fit"):
        layer.apply(native.EXPERTS, noise(3, 15), sent)
    with pytest.raises(EngineError, match="do not fit"):
        layer.apply(native.EXPERTS, x.bfloat16(), sent)
    with pytest.raises(EngineError, match="not that of 4 equal experts"):
        native.EXPERTS.storage(4).nbytes((30, 16), F32)
    assert layer.apply(native.EXPERTS, noise(0, 16), routing(0, 4, 2)).shape == (0, 16)


@needs_core
@pytest.mark.parametrize("level", core.native().runnable_levels() if core.is_available() else [])
def test_every_level_passes(level):
    """The other levels: this file again in a process of its own."""
    if level == core.native().level():
        pytest.skip("this process runs it")
    if os.environ.get("HEADRACE_ISA"):
        pytest.skip("a level is forced from outside")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not reference", __file__],
        env={**os.environ, "HEADRACE_ISA": level}, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
