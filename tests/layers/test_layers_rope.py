"""Frequencies of every rope against transformers, and what a build fixes."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from headrace.layers.base import BuildContext
from headrace.layers.rope import KINDS, Rope, RopeSpec
from headrace.ops.table import select_ops

CASES = {
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 2.5},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "yarn, mscale": {"factor": 40.0, "original_max_position_embeddings": 32, "mscale": 0.7, "mscale_all_dim": 1.0},
    "yarn, given factor": {"factor": 8.0, "original_max_position_embeddings": 48, "attention_factor": 1.7},
    "yarn, betas, no truncation": {
        "factor": 8.0, "original_max_position_embeddings": 4096, "beta_fast": 20.0, "beta_slow": 2.0, "truncate": False,
    },
    "yarn, low equals high": {"factor": 2.0, "original_max_position_embeddings": 6},
}  # fmt: skip


def spec_of(kind: str, parameters: dict, partial: float = 1.0, theta: float = 10000.0) -> RopeSpec:
    own = {("original_max_positions" if k.startswith("original") else k): v for k, v in parameters.items()}
    return RopeSpec(kind=kind, theta=theta, max_positions=256, partial=partial, **own)


@pytest.mark.parametrize("partial", [1.0, 0.5])
@pytest.mark.parametrize("head_dim", [12, 32, 128])
@pytest.mark.parametrize("case", CASES)
def test_frequencies_equal_those_of_transformers(case, head_dim, partial):
    kind = case.split(",")[0]
    parameters = {"rope_type": kind, "rope_theta": 10000.0, "partial_rotary_factor": partial, **CASES[case]}
    config = LlamaConfig(hidden_size=256, num_attention_heads=2, head_dim=head_dim, max_position_embeddings=256)
    config.rope_parameters = parameters
    dim = int(head_dim * partial)
    for length in (256, 700) if kind == "dynamic" else (256,):
        want, want_factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=length)
        got, factor = KINDS[kind](spec_of(kind, CASES[case], partial), dim, length)
        torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
        assert factor == pytest.approx(want_factor, rel=1e-12)


def test_plain_frequencies():
    got, factor = KINDS["default"](spec_of("default", {}), 8, 256)
    torch.testing.assert_close(got, 10000.0 ** -(torch.arange(4) / 4))
    assert factor == 1.0


@pytest.mark.parametrize("partial", [1.0, 0.75])
@pytest.mark.parametrize("given", [{}, {"factor": 3.0}, {"factor": 0.5}, {"attention_factor": 1.3}])
@pytest.mark.parametrize("original", [64, 512])
def test_long_rope_equals_that_of_transformers(given, original, partial):
    n = int(32 * partial) // 2
    short, long = [1.0 + 0.1 * i for i in range(n)], [1.0 + 2.0 * i for i in range(n)]
    config = LlamaConfig(hidden_size=64, num_attention_heads=2, head_dim=32, max_position_embeddings=256)
    config.rope_parameters = {
        "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": partial, "short_factor": short,
        "long_factor": long, "original_max_position_embeddings": original, **given,
    }  # fmt: skip
    spec = RopeSpec(
        "longrope", 10000.0, 256, partial, original_max_positions=original, short_factors=tuple(short),
        long_factors=tuple(long), **{"factor": 256 / original, **given},
    )  # fmt: skip
    for length in (original, original + 1):
        want, want_factor = ROPE_INIT_FUNCTIONS["longrope"](config, "cpu", seq_len=length)
        got, factor = KINDS["longrope"](spec, 2 * n, length)
        torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
        assert factor == pytest.approx(want_factor, rel=1e-12)


def test_llama3_case_meets_all_three_zones():
    plain, _ = KINDS["default"](spec_of("default", {}), 32, 256)
    ratio = plain / KINDS["llama3"](spec_of("llama3", CASES["llama3"]), 32, 256)[0]
    assert ratio[0] == 1
    assert ratio[-1] == 8
    assert ((ratio > 1.01) & (ratio < 7.9)).any()


def angles(max_seq_len: int | None) -> torch.Tensor:
    ctx = BuildContext(ops=select_ops("cpu", torch.float32, "reference"), max_seq_len=max_seq_len)
    return Rope(ctx, spec_of("dynamic", {"factor": 2.0}), 16)(torch.arange(300)).cos


def test_dynamic_rope_is_fixed_when_the_engine_is_built():
    assert torch.equal(angles(None), angles(256))
    assert torch.equal(angles(100), angles(256))
    assert not torch.allclose(angles(300), angles(256))


def test_which_list_of_long_rope_counts_is_fixed_when_the_engine_is_built():
    spec = spec_of(
        "longrope",
        {
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "short_factors": (1.0, 2.0),
            "long_factors": (3.0, 9.0),
        },
    )

    def cosines(max_seq_len: int | None) -> torch.Tensor:
        return Rope(BuildContext(ops=select_ops("cpu", torch.float32, "reference"), max_seq_len=max_seq_len), spec, 4)(
            torch.arange(300)
        ).cos

    assert torch.equal(cosines(None), cosines(256)), "the model's own limit is beyond the original length"
    assert torch.equal(cosines(65), cosines(256))
    assert torch.equal(cosines(64), cosines(10))
    assert not torch.allclose(cosines(64)[:5], cosines(65)[:5])
