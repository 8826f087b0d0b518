"""Nemotron-H, Nemotron Nano 2 and Nemotron 3: Mamba2, attention, MLPs and experts in a pattern."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from headrace.core.errors import ModelError
from headrace.layers.attention import AttentionShape, SelfAttention
from headrace.layers.base import BuildContext, Layer
from headrace.layers.block import AttentionBranch, Branch
from headrace.layers.embedding import Embedding, LMHead
from headrace.layers.linear import Linear
from headrace.layers.mamba2 import Mamba2
from headrace.layers.mlp import SquaredReLUMLP
from headrace.layers.moe import (
    Experts,
    LatentMixture,
    MixtureOfExperts,
    SigmoidRouter,
    WithSharedExpert,
    separate_experts,
)
from headrace.layers.norm import NoHeadNorm, RMSNorm
from headrace.ops.batch import Batch
from headrace.ops.moe import ExpertsShape
from headrace.ops.recurrent import RecurrentShape

from .base import Decoder
from .config import Fields
from .grouped_choice import GroupedDefaults, read_grouped_choice
from .mtp_layer import MtpLayer, MtpNames

_MAMBA, _ATTENTION, _MLP, _MOE = "linear_attention", "full_attention", "mlp", "moe"
_MTP = "mtp."
_LETTERS = {"M": _MAMBA, "*": _ATTENTION, "-": _MLP, "E": _MOE}
_OLDER = {"mamba": _MAMBA, "attention": _ATTENTION}


class NemotronHForCausalLM(Decoder):
    """Each layer is one mixer behind a norm, added to what it reads. Attention knows no positions."""

    def __init__(self, config: Mapping[str, Any], ctx: BuildContext) -> None:
        fields = Fields(config, "NemotronHForCausalLM")
        size, eps, block = _read(fields, ctx)
        super().__init__(fields.integer("vocab_size"), fields.integer("max_position_embeddings"), tied=False)
        self.embed = Embedding(ctx, "backbone.embeddings", self.vocab_size, size)
        self.layers = tuple(block(kind, f"backbone.layers.{i}") for i, kind in enumerate(_kinds(fields)))
        self.norm = RMSNorm(ctx, "backbone.norm_f", size, eps)
        self.head = LMHead(ctx, "lm_head", self.vocab_size, size)
        # Layers that predict further tokens: `mtp_layers`.
        self.ignore_below(_MTP)

    def forward(self, batch: Batch) -> torch.Tensor:
        x = self.embed(batch.input_ids)
        for layer in self.layers:
            x = layer(x, None, batch)
        return self.norm(x)

    @classmethod
    def mtp_prefix(cls, config: Mapping[str, Any]) -> str:
        """What names of tensors of such layers begin with."""
        return _MTP

    @classmethod
    def mtp_layers(cls, config: Mapping[str, Any], ctx: BuildContext) -> list[MtpLayer]:
        """Each is a pattern of blocks: the names of what stands before them are those of its first, of what stands
        behind them those of its last."""
        fields = Fields(config, "NemotronHForCausalLM")
        size, eps, block = _read(fields, ctx)
        kinds = _further_kinds(fields)

        def layer(first: int) -> MtpLayer:
            blocks = [f"mtp.layers.{first + i}" for i in range(len(kinds))]
            before = tuple(f"{blocks[0]}.{part}" for part in ("enorm", "hnorm", "eh_proj"))
            names = MtpNames(*before, f"{blocks[-1]}.final_layernorm", below=tuple(f"{name}." for name in blocks))
            parts = tuple(block(kind, name) for kind, name in zip(kinds, blocks, strict=True))
            return MtpLayer(ctx, names, size, eps, parts, rope=None)

        n_further = fields.integer("num_nextn_predict_layers", 1, at_least=0)
        return [layer(i * len(kinds)) for i in range(n_further)]


def _read(fields: Fields, ctx: BuildContext) -> tuple[int, float, Callable[[str, str], Layer]]:
    """Hidden size, epsilon of norms, and what makes a block from (kind, name)."""
    fields.refuse("quantization_config", "only plain float weights are read here")
    fields.refuse("sliding_window", "attention is full in Nemotron-H")
    fields.refuse("residual_in_fp32", "the residual stream has the dtype of the activations")
    fields.refuse("mamba_proj_bias", "the reference has one switch for these biases, use_bias")
    fields.choice("mlp_hidden_act", ("relu2",), "relu2")
    fields.choice("mamba_hidden_act", ("silu",), "silu")
    fields.refuse("tie_word_embeddings", "the head has a table of its own in Nemotron-H")
    size, eps = fields.integer("hidden_size"), fields.number("layer_norm_epsilon", 1e-5)
    make = _mixers(fields, ctx, size, eps)

    def block(kind: str, name: str) -> Layer:
        branch = Branch if kind in (_MLP, _MOE) else AttentionBranch
        return branch(ctx, f"{name}.norm", size, eps, make(kind, f"{name}.mixer"))

    return size, eps, block


def _further_kinds(fields: Fields) -> list[str]:
    """The blocks of one MTP layer: ``mtp_layers_block_type``, or a letter each in ``mtp_hybrid_override_pattern``."""
    given = fields.raw("mtp_layers_block_type", None)
    if given is None:
        given = [_LETTERS.get(letter, letter) for letter in fields.raw("mtp_hybrid_override_pattern", "*E")]
    kinds = [_OLDER.get(kind, kind) for kind in given]
    if not kinds or not set(kinds) <= {_ATTENTION, _MOE}:
        raise ModelError(
            f"{fields.where}: the blocks of an MTP layer are {_ATTENTION} (*) and {_MOE} (E) in"
            f" mtp_layers_block_type or mtp_hybrid_override_pattern, got {given}"
        )
    return kinds


def _kinds(fields: Fields) -> list[str]:
    """What each layer is: ``layers_block_type``, or a letter each in ``hybrid_override_pattern``."""
    given = fields.raw("layers_block_type", None)
    if given is None:
        given = [_LETTERS.get(letter, letter) for letter in fields.raw("hybrid_override_pattern")]
    kinds = [_OLDER.get(kind, kind) for kind in given]
    unknown = sorted(set(kinds) - set(_LETTERS.values()))
    if unknown or not kinds:
        raise ModelError(
            f"{fields.where}: layers of kind {', '.join(unknown) or '(none at all)'}; there are {_MAMBA} (M),"
            f" {_ATTENTION} (*), {_MLP} (-) and {_MOE} (E)"
        )
    n_layers = fields.integer("num_hidden_layers", len(kinds))
    if n_layers != len(kinds):
        raise ModelError(f"{fields.where}: num_hidden_layers = {n_layers}, but the pattern has {len(kinds)} layers")
    return kinds


def _mixers(fields: Fields, ctx: BuildContext, hidden_size: int, eps: float) -> Any:
    """(kind, name) -> the mixer of a layer."""
    n_heads = fields.integer("num_attention_heads")
    attention = AttentionShape(
        hidden_size,
        n_heads,
        fields.integer("num_key_value_heads", n_heads),
        fields.integer("head_dim", hidden_size // n_heads),
    )
    attention_bias, mlp_bias = fields.flag("attention_bias", False), fields.flag("mlp_bias", False)
    recurrent = _recurrent_shape(fields)
    dt_limit, bias = _dt_limit(fields), fields.flag("use_bias", False)
    conv_bias, inner_size = fields.flag("use_conv_bias", True), fields.integer("intermediate_size")
    mixture = _Mixture(fields, ctx, hidden_size, bias=mlp_bias)

    def make(kind: str, name: str) -> Layer:
        if kind == _MAMBA:
            return Mamba2(ctx, name, recurrent, hidden_size, eps, dt_limit=dt_limit, bias=bias, conv_bias=conv_bias)
        if kind == _MLP:
            return SquaredReLUMLP(ctx, name, hidden_size, inner_size, bias=mlp_bias)
        if kind == _MOE:
            return mixture(name)
        scale = attention.head_dim**-0.5
        return SelfAttention(
            ctx, name, attention, NoHeadNorm(), scale=scale, rotated=False, bias=attention_bias, out_bias=attention_bias
        )

    return make


class _Mixture:
    """Makes the experts of a layer, squared ReLU without a gate, beside one that every row passes through."""

    def __init__(self, fields: Fields, ctx: BuildContext, hidden_size: int, *, bias: bool) -> None:
        self._ctx, self._size, self._bias = ctx, hidden_size, bias
        n_experts, self._choice = read_grouped_choice(fields, GroupedDefaults(8, 2, 1, 1, 1.0))
        self._latent_size = fields.integer("moe_latent_size", None)
        size, inner = self._latent_size or hidden_size, fields.integer("moe_intermediate_size", 7688)
        self._shape = ExpertsShape(n_experts, size, inner, "relu_squared")
        self._shared_size = fields.integer("moe_shared_expert_intermediate_size", 7688)

    def __call__(self, name: str) -> WithSharedExpert:
        ctx, shape = self._ctx, self._shape
        router = SigmoidRouter(ctx, f"{name}.gate", self._size, shape.n_experts, self._choice, corrected=True)
        experts = Experts(ctx, shape, separate_experts(f"{name}.experts", shape, up=("up_proj",)))
        shared = SquaredReLUMLP(ctx, f"{name}.shared_experts", self._size, self._shared_size, bias=self._bias)
        if self._latent_size is None:
            return WithSharedExpert(ctx, MixtureOfExperts(router, experts), shared)
        into = Linear(ctx, (f"{name}.fc1_latent_proj",), self._size, (shape.size,), bias=self._bias)
        out_of = Linear(ctx, (f"{name}.fc2_latent_proj",), shape.size, (self._size,), bias=self._bias)
        return WithSharedExpert(ctx, LatentMixture(router, experts, into, out_of), shared)


def _recurrent_shape(fields: Fields) -> RecurrentShape:
    heads, groups = fields.integer("mamba_num_heads"), fields.integer("n_groups", 8)
    if heads % groups:
        raise ModelError(f"{fields.where}: mamba_num_heads = {heads} must be a multiple of n_groups = {groups}")
    return RecurrentShape(
        n_units=groups,
        heads=heads // groups,
        rows=fields.integer("ssm_state_size", 128),
        cols=fields.integer("mamba_head_dim", 64),
        taps=fields.integer("conv_kernel", 4),
    )


def _dt_limit(fields: Fields) -> tuple[float, float]:
    """``time_step_limit``. Infinity may come as a JSON number that is none, or as an object."""
    given = fields.raw("time_step_limit", [0.0, float("inf")])
    values = [float(one["__float__"]) if isinstance(one, Mapping) and "__float__" in one else one for one in given]
    fine = len(values) == 2 and all(isinstance(value, int | float) for value in values)
    if not fine or not 0.0 <= values[0] < values[1]:
        raise ModelError(f"{fields.where}: time_step_limit must be two numbers, the lower first, got {given!r}")
    return float(values[0]), float(values[1])
