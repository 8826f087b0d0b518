"""headrace: an LLM engine in which turning a feature on never changes an output.

Names are imported when they are first used, so that ``import headrace`` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from headrace.core.config import (
        CapacitySchedulerPolicy,
        ContextChunkingPolicy,
        CudaGraphConfig,
        KvCacheConfig,
        SchedulerConfig,
    )
    from headrace.core.errors import (
        CheckpointError,
        ConfigError,
        EngineDeadError,
        EngineError,
        HeadraceError,
        ModelError,
        RequestError,
    )
    from headrace.core.guided_params import GuidedDecodingParams
    from headrace.core.lora import LoraConfig, LoRARequest
    from headrace.core.outputs import Logprob
    from headrace.core.pooling import PoolingParams
    from headrace.core.processors import BatchedLogitsProcessor, LogitsProcessor
    from headrace.core.retention import KvCacheRetentionConfig, TokenRangeRetentionConfig
    from headrace.core.sampling_params import SamplingParams
    from headrace.core.speculative import (
        AutoDecodingConfig,
        DraftTargetDecodingConfig,
        Eagle3DecodingConfig,
        EagleDecodingConfig,
        MTPDecodingConfig,
        NGramDecodingConfig,
        SADecodingConfig,
        SaveHiddenStatesDecodingConfig,
        UserProvidedDecodingConfig,
    )
    from headrace.engine.results import CompletionOutput, EncodeOutput, RequestOutput
    from headrace.llm import LLM

_HOME = {
    "LLM": "headrace.llm",
    "PoolingParams": "headrace.core.pooling",
    "SamplingParams": "headrace.core.sampling_params",
    "BatchedLogitsProcessor": "headrace.core.processors",
    "LogitsProcessor": "headrace.core.processors",
    "GuidedDecodingParams": "headrace.core.guided_params",
    "KvCacheConfig": "headrace.core.config",
    "KvCacheRetentionConfig": "headrace.core.retention",
    "TokenRangeRetentionConfig": "headrace.core.retention",
    "LoRARequest": "headrace.core.lora",
    "LoraConfig": "headrace.core.lora",
    "CudaGraphConfig": "headrace.core.config",
    "SchedulerConfig": "headrace.core.config",
    "CapacitySchedulerPolicy": "headrace.core.config",
    "ContextChunkingPolicy": "headrace.core.config",
    "AutoDecodingConfig": "headrace.core.speculative",
    "NGramDecodingConfig": "headrace.core.speculative",
    "SADecodingConfig": "headrace.core.speculative",
    "SaveHiddenStatesDecodingConfig": "headrace.core.speculative",
    "DraftTargetDecodingConfig": "headrace.core.speculative",
    "Eagle3DecodingConfig": "headrace.core.speculative",
    "EagleDecodingConfig": "headrace.core.speculative",
    "MTPDecodingConfig": "headrace.core.speculative",
    "UserProvidedDecodingConfig": "headrace.core.speculative",
    "EncodeOutput": "headrace.engine.results",
    "RequestOutput": "headrace.engine.results",
    "CompletionOutput": "headrace.engine.results",
    "Logprob": "headrace.core.outputs",
    "HeadraceError": "headrace.core.errors",
    "ConfigError": "headrace.core.errors",
    "ModelError": "headrace.core.errors",
    "CheckpointError": "headrace.core.errors",
    "RequestError": "headrace.core.errors",
    "EngineError": "headrace.core.errors",
    "EngineDeadError": "headrace.core.errors",
}

__all__ = [
    "LLM",
    "AutoDecodingConfig",
    "BatchedLogitsProcessor",
    "CapacitySchedulerPolicy",
    "CheckpointError",
    "CompletionOutput",
    "ConfigError",
    "ContextChunkingPolicy",
    "CudaGraphConfig",
    "DraftTargetDecodingConfig",
    "Eagle3DecodingConfig",
    "EagleDecodingConfig",
    "EncodeOutput",
    "EngineDeadError",
    "EngineError",
    "GuidedDecodingParams",
    "HeadraceError",
    "KvCacheConfig",
    "KvCacheRetentionConfig",
    "LoRARequest",
    "LogitsProcessor",
    "Logprob",
    "LoraConfig",
    "MTPDecodingConfig",
    "ModelError",
    "NGramDecodingConfig",
    "PoolingParams",
    "RequestError",
    "RequestOutput",
    "SADecodingConfig",
    "SamplingParams",
    "SaveHiddenStatesDecodingConfig",
    "SchedulerConfig",
    "TokenRangeRetentionConfig",
    "UserProvidedDecodingConfig",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'headrace' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
