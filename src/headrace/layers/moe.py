"""Mixtures of experts: a router chooses experts for each row, and their outputs are added."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from headrace.core.errors import ModelError
from headrace.ops.moe import ExpertsShape, Routing
from headrace.quant.schemes import NO_SCHEME

from .adapters import NO_ADAPTERS
from .base import BuildContext, Layer, Parameter, Source, Weight, stacked
from .linear import Linear, segments


class SoftmaxRouter(Layer):
    """Chooses by logit, weighs by softmax.

    Args:
        name: path of the checkpoint's linear map to one logit an expert.
        k: experts of a row.
        normalised: the weights of a row are divided by their sum.
    """

    def __init__(
        self,
        ctx: BuildContext,
        name: str,
        hidden_size: int,
        n_experts: int,
        k: int,
        *,
        normalised: bool,
        bias: bool = False,
    ) -> None:
        self.logits = _Logits(ctx, name, hidden_size, n_experts, bias=bias)
        self._choose = ctx.ops.softmax_top_k
        self._k, self._normalised = k, normalised
        self.share = k / n_experts

    def __call__(self, x: torch.Tensor) -> Routing:
        """[T, hidden] -> the experts of each row."""
        return self._choose(self.logits(x), self._k, normalised=self._normalised)


@dataclass(frozen=True, slots=True)
class SigmoidChoice:
    """How a ``SigmoidRouter`` chooses and weighs. Defaults: by logit, weights are the plain sigmoids."""

    k: int
    normalised: bool = False
    """The weights of a row are divided by their sum."""
    n_groups: int = 1
    top_groups: int = 1
    """Groups that experts of a row may come from."""
    factor: float = 1.0
    """Of the weights."""


class SigmoidRouter(Layer):
    """Weighs by sigmoid, and chooses by it plus a correction, within groups (DeepSeek-V3), or by logit (Llama 4).

    Args:
        name: path of the checkpoint's linear map to one logit an expert.
        corrected: the checkpoint has ``name``.e_score_correction_bias, which takes part in the choice alone.
    """

    def __init__(
        self,
        ctx: BuildContext,
        name: str,
        hidden_size: int,
        n_experts: int,
        choice: SigmoidChoice,
        *,
        corrected: bool = False,
    ) -> None:
        self.logits = _Logits(ctx, name, hidden_size, n_experts)
        sources = stacked((f"{name}.e_score_correction_bias",), (n_experts,))
        in_fp32 = replace(ctx, dtype=torch.float32)
        self.correction: Parameter | NoCorrection = (
            Parameter(in_fp32, (n_experts,), sources) if corrected else NO_CORRECTION
        )
        self._choose = ctx.ops.sigmoid_top_k
        self._choice = choice
        self.share = choice.k / n_experts

    def __call__(self, x: torch.Tensor) -> Routing:
        """[T, hidden] -> the experts of each row."""
        c = self._choice
        return self._choose(
            self.logits(x),
            self.correction.data,
            c.k,
            normalised=c.normalised,
            n_groups=c.n_groups,
            top_groups=c.top_groups,
            factor=c.factor,
        )


class NoCorrection:
    """Stands for a correction that is not there."""

    data = None


NO_CORRECTION = NoCorrection()


class _Logits(Linear):
    """One logit an expert, in fp32 whatever the dtype of the model: two experts must not become equal by rounding. For
    the same reason its weight is never in blocks, and takes no adapter."""

    def __init__(self, ctx: BuildContext, name: str, hidden_size: int, n_experts: int, *, bias: bool = False) -> None:
        super().__init__(
            replace(ctx, scheme=NO_SCHEME, adapters=NO_ADAPTERS), (name,), hidden_size, (n_experts,), bias=bias
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._ops.apply(x, self.weight.data, self.bias.data, dtype=torch.float32)


ACTIVATIONS = {"silu": "silu_mul", "gelu_pytorch_tanh": "gelu_tanh_mul", "relu2": "relu_squared"}
"""Names in configurations -> operators."""


@dataclass(frozen=True, slots=True)
class ExpertSources:
    """The checkpoint tensors of a layer's experts: first product, second product, and their biases."""

    gate_up: tuple[Source, ...]
    down: tuple[Source, ...]
    gate_up_bias: tuple[Source, ...] = ()
    down_bias: tuple[Source, ...] = ()


def separate_experts(
    name: str, shape: ExpertsShape, *, up: Sequence[str] = ("gate_proj", "up_proj"), down: str = "down_proj"
) -> ExpertSources:
    """One tensor for each product of each expert: ``name``.{expert}.{part}.weight. ``up``: gate before up."""
    height = shape.gate_up // len(up)
    gate_up_names = tuple(f"{name}.{e}.{part}.weight" for e in range(shape.n_experts) for part in up)
    down_names = tuple(f"{name}.{e}.{down}.weight" for e in range(shape.n_experts))
    return ExpertSources(
        stacked(gate_up_names, (height,) * len(gate_up_names), shape.size),
        stacked(down_names, (shape.size,) * len(down_names), shape.inner),
    )


def stacked_experts(name: str, shape: ExpertsShape, *, interleaved: bool = False, bias: bool = False) -> ExpertSources:
    """One tensor for each product of all experts, input-major: ``name``.gate_up_proj [n_experts, size, gate_up] and
    ``name``.down_proj [n_experts, inner, size].

    Args:
        interleaved: outputs of gate and up take turns, gate first (GPT-OSS); else all of gate come first (Llama 4).
        bias: there are ``name``.gate_up_proj_bias [n_experts, gate_up] and ``name``.down_proj_bias.
    """
    n, first, size, inner = shape.n_experts, shape.gate_up, shape.size, shape.inner

    def apart(outputs: torch.Tensor) -> torch.Tensor:
        """Along the second dimension."""
        return outputs.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2) if interleaved else outputs

    def source(part: str, *each: int, height: int, turn: Callable[[torch.Tensor], torch.Tensor]) -> tuple[Source]:
        return (Source(f"{name}.{part}", (n, *each), 0, n * height, turn=turn),)

    gate_up = source("gate_up_proj", size, first, height=first, turn=lambda w: apart(w.transpose(1, 2)).flatten(0, 1))
    down = source("down_proj", inner, size, height=size, turn=lambda w: w.transpose(1, 2).flatten(0, 1))
    if not bias:
        return ExpertSources(gate_up, down)
    return ExpertSources(
        gate_up,
        down,
        source("gate_up_proj_bias", first, height=1, turn=apart),
        source("down_proj_bias", size, height=1, turn=lambda b: b),
    )


class Experts(Layer):
    """The experts of a layer, computed in one call for all rows.

    Args:
        shape: with the operator's name of the activation; ``segments`` is settled here.
    """

    def __init__(self, ctx: BuildContext, shape: ExpertsShape, sources: ExpertSources) -> None:
        n = shape.n_experts
        self._ops = ctx.ops.experts
        self._shape = replace(shape, segments=segments(shape.inner, shape.inner))
        self.gate_up = Weight(ctx, (n * shape.gate_up, shape.size), sources.gate_up, n_experts=n)
        self.down = Weight(ctx, (n * shape.size, shape.inner), sources.down, n_experts=n)
        has_bias = bool(sources.gate_up_bias)
        self._biases = (
            (
                Parameter(ctx, (n, shape.gate_up), sources.gate_up_bias),
                Parameter(ctx, (n, shape.size), sources.down_bias),
            )
            if has_bias
            else ()
        )

    def __call__(self, x: torch.Tensor, routing: Routing) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]."""
        biases = (bias.data for bias in self._biases)
        return self._ops.apply(x, routing, self._shape, self.gate_up.data, self.down.data, *biases)


class MixtureOfExperts(Layer):
    """The weighted sum of the experts that a row is sent to."""

    def __init__(self, router: SoftmaxRouter | SigmoidRouter, experts: Experts) -> None:
        self.router = router
        self.experts = experts

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]."""
        return self.experts(x, self.router(x))

    @property
    def share(self) -> float:
        """Of the experts, those that one row is sent to."""
        return self.router.share


class LatentMixture(MixtureOfExperts):
    """Experts in a narrower space: rows are projected into it and their sums out of it. The router sees the rows
    themselves (Nemotron-3)."""

    def __init__(self, router: SoftmaxRouter | SigmoidRouter, experts: Experts, into: Linear, out_of: Linear) -> None:
        super().__init__(router, experts)
        self.into, self.out_of = into, out_of

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.out_of(self.experts(self.into(x), self.router(x)))


class WithSharedExpert(Layer):
    """A mixture, plus an expert that every row passes through."""

    def __init__(self, ctx: BuildContext, mixture: MixtureOfExperts, shared: Layer) -> None:
        self.mixture = mixture
        self.shared = shared
        self._add = ctx.ops.add

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]."""
        return self._add(self.shared(x), self.mixture(x))


class SharedExpertGate(Layer):
    """A shared expert, times a sigmoid of one number a row (Qwen3-Next).

    Args:
        name: path of the checkpoint's linear map to that number.
    """

    def __init__(self, ctx: BuildContext, name: str, hidden_size: int, shared: Layer) -> None:
        self.shared = shared
        self.gate = Linear(ctx, (name,), hidden_size, (1,))
        self._scale = ctx.ops.sigmoid_mul

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]."""
        return self._scale(self.shared(x), self.gate(x))


def expert_activation(name: str, activation: str) -> str:
    """The operator of an activation named in a configuration. Raises ModelError for one that is not known."""
    if activation not in ACTIVATIONS:
        raise ModelError(f"{name}: activation {activation!r} is not known; there are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[activation]
