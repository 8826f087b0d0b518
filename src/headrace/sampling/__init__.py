"""From logits to tokens and logprobs. ``docs/sampling.md`` defines the draw."""

from .contract import NO_TOKEN, RowMasks, SampleOutcome, Sampler, SampleRows
from .guided import GuidedSampler
from .native import NativeSampler
from .params import check_tokens
from .processors import ProcessingSampler
from .sampler import TorchSampler
from .verify import EndRules, Verified, verify

__all__ = [
    "NO_TOKEN",
    "EndRules",
    "GuidedSampler",
    "NativeSampler",
    "ProcessingSampler",
    "RowMasks",
    "SampleOutcome",
    "SampleRows",
    "Sampler",
    "TorchSampler",
    "Verified",
    "check_tokens",
    "verify",
]
