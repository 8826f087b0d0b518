"""From logits to tokens and logprobs. ``docs/sampling.md`` defines the draw."""

from .acceptance import Acceptance, Relaxed, Remembering
from .candidates import CandidateFinder
from .contract import NO_TOKEN, RowMasks, SampleOutcome, Sampler, SampleRows
from .guided import GuidedSampler
from .native import NativeSampler
from .params import check_tokens
from .processors import ProcessingSampler
from .sampler import TorchSampler
from .split import SplitSampler
from .verify import EndRules, Verified, verify

__all__ = [
    "NO_TOKEN",
    "Acceptance",
    "CandidateFinder",
    "EndRules",
    "GuidedSampler",
    "NativeSampler",
    "ProcessingSampler",
    "Relaxed",
    "Remembering",
    "RowMasks",
    "SampleOutcome",
    "SampleRows",
    "Sampler",
    "SplitSampler",
    "TorchSampler",
    "Verified",
    "check_tokens",
    "verify",
]
