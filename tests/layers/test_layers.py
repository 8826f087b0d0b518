"""Layers: how parameters are filled, and what each computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from headrace.cache.specs import ChunkedKV, FullKV, SlidingKV
from headrace.core.errors import EngineError, ModelError
from headrace.layers.attention import AttentionShape, PagedAttention, SelfAttention
from headrace.layers.base import BuildContext, Layer
from headrace.layers.block import PostNormBlock, PreNormBlock, SandwichBlock
from headrace.layers.embedding import Embedding, LMHead
from headrace.layers.linear import Linear
from headrace.layers.mlp import GatedMLP, SquaredReLUMLP
from headrace.layers.norm import HeadNorm, LayerNormPlusOne, NoHeadNorm, RMSNorm
from headrace.ops.batch import Batch, GroupBatch
from headrace.ops.table import select_ops
from headrace.weights.dummy import DummyCheckpoint
from plain_weights import plain, set_plain

CTX = BuildContext(ops=select_ops("cpu", torch.float32))


def fill(layer: Layer) -> Mapping[str, torch.Tensor]:
    """Fills a layer with random weights; gives them by checkpoint name."""
    shapes = {source.name: source.shape for p in layer.parameters() for source in p.sources}
    checkpoint = DummyCheckpoint({}, shapes, seed=5, dtype=torch.float32)
    for parameter in layer.parameters():
        parameter.allocate()
        set_plain(parameter, torch.full(parameter.shape, torch.nan))  # so that a row that no source fills is seen
        for source in parameter.sources:
            parameter.fill(source, checkpoint)
        assert not plain(parameter).isnan().any()
    return {name: checkpoint.tensor(name) for name in shapes}


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bias", [False, True])
def test_a_fused_linear_is_its_parts_side_by_side(bias):
    layer = Linear(CTX, ("a.q", "a.k", "a.v"), 6, (8, 3, 5), bias=bias)
    w = fill(layer)
    assert set(w) == {f"a.{x}.{kind}" for x in "qkv" for kind in (("weight", "bias") if bias else ("weight",))}
    x = noise(4, 6)
    parts = [x @ w[f"a.{n}.weight"].T + (w[f"a.{n}.bias"] if bias else 0) for n in "qkv"]
    torch.testing.assert_close(layer(x), torch.cat(parts, 1))


def test_parameters_take_no_memory_before_they_are_loaded():
    layer = Linear(CTX, ("huge",), 1 << 20, (1 << 20,))
    (parameter,) = layer.parameters()
    assert parameter.data is None
    assert parameter.nbytes == 1 << 42


def test_a_tied_head_shares_the_table_and_caps_in_fp32():
    ctx = BuildContext(ops=CTX.ops, dtype=torch.bfloat16)
    embedding = Embedding(ctx, "embed", 11, 6)
    head = LMHead(ctx, "lm_head", 11, 6, tied=embedding, cap=2.0)
    assert list(head.parameters()) == list(embedding.parameters())
    w = fill(embedding)["embed.weight"].bfloat16()
    logits = head(embedding(torch.tensor([3, 4])) * 9)
    assert logits.dtype == torch.float32
    # Whether a sum is rounded to bfloat16 on its way to fp32 is the operator's own business.
    want = 2 * torch.tanh((w[3:5] * 9).float() @ w.float().T / 2)
    torch.testing.assert_close(logits, want, rtol=2**-8, atol=2**-8)


def test_head_norm_gives_queries_and_keys_their_own_weight():
    layer = HeadNorm(CTX, "attn", 3, 2, 8, 1e-6)
    w = fill(layer)
    x = noise(4, 5, 8)
    want = x / x.pow(2).mean(-1, keepdim=True).add(1e-6).sqrt()
    got = layer(x)
    torch.testing.assert_close(got[:, :3], want[:, :3] * w["attn.q_norm.weight"])
    torch.testing.assert_close(got[:, 3:], want[:, 3:] * w["attn.k_norm.weight"])


@pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh"])
def test_gated_mlp(activation):
    layer = GatedMLP(CTX, "mlp", 6, 7, activation, bias=True)
    w = fill(layer)
    x = noise(3, 6)
    gate, up = (x @ w[f"mlp.{n}.weight"].T + w[f"mlp.{n}.bias"] for n in ("gate_proj", "up_proj"))
    act = torch.nn.functional.silu(gate) if activation == "silu" else torch.nn.functional.gelu(gate, approximate="tanh")
    torch.testing.assert_close(layer(x), (act * up) @ w["mlp.down_proj.weight"].T + w["mlp.down_proj.bias"])


def test_fused_tensors_of_the_checkpoint_lie_as_separate_ones_do():
    fused, apart = (GatedMLP(CTX, "mlp", 6, 7, "silu", fused=fused) for fused in (True, False))
    w = fill(fused)
    assert set(w) == {"mlp.gate_up_proj.weight", "mlp.down_proj.weight"}
    fill(apart)
    set_plain(apart.gate_up.weight, w["mlp.gate_up_proj.weight"])
    set_plain(apart.down.weight, w["mlp.down_proj.weight"])
    x = noise(3, 6)
    assert torch.equal(fused(x), apart(x))
    attention = SelfAttention(CTX, "a", AttentionShape(6, 4, 2, 5), NoHeadNorm(), scale=1.0, fused=True)
    assert [source.name for p in attention.parameters() for source in p.sources] == [
        "a.qkv_proj.weight",
        "a.o_proj.weight",
    ]


def test_squared_relu_mlp():
    layer = SquaredReLUMLP(CTX, "mlp", 6, 7, bias=True)
    w = fill(layer)
    x = noise(3, 6)
    up = x @ w["mlp.up_proj.weight"].T + w["mlp.up_proj.bias"]
    torch.testing.assert_close(layer(x), up.clamp(min=0) ** 2 @ w["mlp.down_proj.weight"].T + w["mlp.down_proj.bias"])


def test_an_unknown_activation_is_refused():
    with pytest.raises(ModelError, match=r"'mish' is not known; there are silu, gelu_pytorch_tanh"):
        GatedMLP(CTX, "mlp", 6, 7, "mish")


class Twice(Layer):
    """Stands for attention or MLP in a block."""

    def __call__(self, x: torch.Tensor, *_: object) -> torch.Tensor:
        return 2 * x


def test_where_the_norms_of_a_block_stand():
    x = noise(3, 6)
    pre = PreNormBlock(CTX, "l", 6, 1e-6, Twice(), Twice())
    w = fill(pre)
    assert set(w) == {"l.input_layernorm.weight", "l.post_attention_layernorm.weight"}
    h = x + 2 * pre.attention_norm(x)
    torch.testing.assert_close(pre(x, None, None), h + 2 * pre.mlp_norm(h))

    sandwich = SandwichBlock(CTX, "l", 6, 1e-6, Twice(), Twice())
    fill(sandwich)
    h = x + sandwich.after_attention(2 * sandwich.before_attention(x))
    torch.testing.assert_close(sandwich(x, None, None), h + sandwich.after_mlp(2 * sandwich.before_mlp(h)))
    assert all(p.zero_centred for p in sandwich.parameters())

    post = PostNormBlock(CTX, "l", 6, 1e-6, Twice(), Twice())
    w = fill(post)
    assert set(w) == {"l.post_attention_layernorm.weight", "l.post_feedforward_layernorm.weight"}
    h = x + post.after_attention(2 * x)
    torch.testing.assert_close(post(x, None, None), h + post.after_mlp(2 * h))

    layered = PreNormBlock(CTX, "l", 6, 1e-6, Twice(), Twice(), norm=LayerNormPlusOne)
    assert {
        f"l.{norm}.{kind}" for norm in ("input_layernorm", "post_attention_layernorm") for kind in ("weight", "bias")
    } == set(fill(layered))
    assert isinstance(layered.mlp_norm, LayerNormPlusOne)


def test_attention_declares_its_cache():
    assert PagedAttention(CTX, 2, 12, scale=1.0).cache_spec == FullKV(2, 12, 4)
    half = BuildContext(ops=CTX.ops, dtype=torch.bfloat16)
    assert PagedAttention(half, 2, 12, scale=1.0, window=9).cache_spec == SlidingKV(2, 12, 2, 9)
    wide = BuildContext(ops=CTX.ops, dtype=torch.bfloat16, kv_dtype=torch.float32)
    assert PagedAttention(wide, 2, 12, scale=1.0).cache_spec == FullKV(2, 12, 4)
    chunks = PagedAttention(CTX, 2, 12, scale=1.0, chunk=64, v_head_dim=8)
    assert chunks.cache_spec == ChunkedKV(2, 12, 4, 64, v_head_dim=8)
    # An equal width said twice is the same group.
    assert PagedAttention(CTX, 2, 12, scale=1.0, v_head_dim=12).cache_spec == FullKV(2, 12, 4)
    with pytest.raises(EngineError, match="one or the other"):
        PagedAttention(CTX, 2, 12, scale=1.0, window=8, chunk=64)


def test_a_cache_that_does_not_fit_is_refused():
    attention = PagedAttention(CTX, 2, 12, scale=1.0)
    for wrong in (torch.zeros(3, 2 * 32 * 12), torch.zeros(3, 2 * 2 * 32 * 12).bfloat16()):
        with pytest.raises(EngineError, match="does not fit"):
            attention.bind_cache(0, wrong)


def test_self_attention_names_the_checkpoint_tensors():
    layer = SelfAttention(
        CTX, "l.self_attn", AttentionShape(6, 4, 2, 5), NoHeadNorm(), scale=1.0, bias=True, out_bias=False
    )
    shapes = {source.name: source.shape for p in layer.parameters() for source in p.sources}
    assert shapes == {
        "l.self_attn.q_proj.weight": (20, 6),
        "l.self_attn.k_proj.weight": (10, 6),
        "l.self_attn.v_proj.weight": (10, 6),
        "l.self_attn.q_proj.bias": (20,),
        "l.self_attn.k_proj.bias": (10,),
        "l.self_attn.v_proj.bias": (10,),
        "l.self_attn.o_proj.weight": (6, 20),
    }


def test_self_attention_with_sinks_a_cap_and_narrow_values_is_its_parts():
    shape = AttentionShape(6, 4, 2, 8, v_head_dim=5)
    layer = SelfAttention(CTX, "a", shape, NoHeadNorm(), scale=0.5, soft_cap=2.0, chunk=4, sinks=True, rotated=False)
    w = fill(layer)
    layer.attention.bind_cache(0, torch.full((1, 2 * 32 * 13), torch.nan))
    batch = Batch(
        *(torch.arange(7), torch.arange(7), torch.tensor([0, 7]), torch.tensor([7])),
        groups=(GroupBatch(torch.zeros(1, 1, dtype=torch.int32), torch.arange(7)),),
    )
    batch.groups[0].metadata = CTX.ops.attention.plan(batch, 0, layer.attention.cache_spec)
    x = noise(7, 6)
    q, k, v = (
        (x @ w[f"a.{name}_proj.weight"].T).view(7, heads, -1).repeat_interleave(4 // heads, 1)
        for name, heads in (("q", 4), ("k", 2), ("v", 2))
    )
    scores = 2.0 * torch.tanh(torch.einsum("qhd,khd->hqk", q, k) * 0.5 / 2.0)
    row = torch.arange(7)
    hidden = (row[None] > row[:, None]) | (row[None] // 4 != row[:, None] // 4)
    scores = torch.cat((scores.masked_fill(hidden, -torch.inf), w["a.sinks"].view(4, 1, 1).expand(4, 7, 1)), 2)
    mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1)[..., :-1], v)
    torch.testing.assert_close(layer(x, None, batch), mixed.flatten(1) @ w["a.o_proj.weight"].T)


@pytest.mark.parametrize("v_head_dim", [8, 5])
def test_heads_of_one_row_lie_as_those_of_many(v_head_dim):
    """A step recorded with one row is replayed with more, over the strides that the one row had."""
    strides = []

    class Spy:
        def write(self, k: torch.Tensor, v: torch.Tensor, *_: Any) -> None:
            strides.append((k.stride(), v.stride()))

        def attend(self, q: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            strides.append(q.stride())
            return q.new_zeros(q.shape[0], 4, v_head_dim)

    ctx = replace(CTX, ops=replace(CTX.ops, attention=Spy()))
    shape = AttentionShape(6, 4, 2, 8, v_head_dim=v_head_dim)
    layer = SelfAttention(ctx, "a", shape, NoHeadNorm(), scale=1.0, rotated=False)
    fill(layer)
    layer.attention._group = 0
    batch = Batch(*(torch.arange(1),) * 4, groups=(GroupBatch(torch.zeros(1, 1), torch.arange(1)),))
    layer(noise(1, 6), None, batch)
    layer(noise(3, 6), None, batch)
    assert strides[:2] == strides[2:]


def test_layer_norm_layer():
    layer = LayerNormPlusOne(CTX, "n", 6, 1e-5)
    w = fill(layer)
    x = noise(2, 6)
    want = torch.nn.functional.layer_norm(x, (6,), 1 + w["n.weight"], w["n.bias"], 1e-5)
    torch.testing.assert_close(layer(x), want)
    assert (layer.weight.zero_centred, layer.bias.zero_centred) == (True, False)


def test_rms_norm_layer_kinds():
    direct, plus = RMSNorm(CTX, "n", 6, 1e-6), RMSNorm(CTX, "n", 6, 1e-6, plus_one=True)
    fill(direct)
    fill(plus)
    x = noise(2, 6)
    plus.weight.data.copy_(direct.weight.data - 1)
    torch.testing.assert_close(direct(x), plus(x))
    assert (direct.weight.zero_centred, plus.weight.zero_centred) == (False, True)
