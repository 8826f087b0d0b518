"""``LlmArgs`` and the configuration classes: the arguments of ``LLM``, checked once, at construction.

Names, meanings and defaults follow TensorRT-LLM's LLM API; where headrace differs the field says so. Only the build
step reads these objects; the engine's parts get plain values.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_serializer, field_validator, model_validator

from .config_base import Config, Positive
from .features import MISSING_ARGS, refuse_missing_args
from .lora import LoraConfig
from .processors import is_import_path
from .reasoning import Parser
from .speculative import EagleDecodingConfig, SaveHiddenStatesDecodingConfig, SpeculativeConfig

_CHUNK, _WHOLE_PROMPT = 512, 8192
_LANES = 64
"""Paths of draft trees in a step, beside the first of each."""
"""Rows of a step by default."""


class KvCacheConfig(Config):
    """The KV cache. Unlike in TensorRT-LLM, ``max_tokens`` counts tokens of all paged layers together."""

    enable_block_reuse: bool = True
    enable_partial_reuse: bool = True
    copy_on_partial_reuse: Literal[True] = True
    """A prefix that ends inside a block is copied, never taken over."""
    max_tokens: Positive | None = None
    """Size of the arena in tokens; None: what max_batch_size x max_seq_len needs, at most half of the memory left."""
    max_attention_window: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    """Positions that a row reads at most, its own among them, by layer: the list is repeated over the layers with
    attention over the text. A window is never wider than the model's own; one of max_seq_len or more takes nothing
    away. It changes outputs."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8", "fp8"] = "auto"
    """What keys and values are kept in; auto: the activation dtype. int8 and fp8 have a scale for each token and head,
    and change outputs: see docs/quantisation.md. Recurrent states are float32 whatever this says."""
    tokens_per_block: Literal[32] = 32
    state_checkpoint_interval: Annotated[int, Field(ge=32, multiple_of=32)] = 64
    """Models with recurrent states: tokens from one state that is kept for reuse to the next, beside the last one of
    each sequence. A prefix is computed again from the last state before its end."""
    host_cache_size: Annotated[int, Field(ge=0)] | None = None
    """Bytes of memory beside the arena for blocks that had to make room in it; rounded up to whole sectors."""
    secondary_offload_min_priority: Annotated[int, Field(ge=0, le=100)] | None = None
    """Blocks of a lower priority (``KvCacheRetentionConfig``) are not kept on the host; None: 35."""
    onboard_blocks: Literal[True] = True
    """Blocks on the host are copied back to the arena to be used."""
    disk_cache_size: Annotated[int, Field(ge=0)] | None = None
    """Bytes on disk for blocks that had to make room on the host."""
    disk_cache_path: str | None = None
    """Folder for them. The file has no name and is gone with the process."""

    event_buffer_max_size: Annotated[int, Field(ge=0)] = 0
    """Events of blocks that come, go and move, kept until ``get_kv_cache_events`` asks for them; 0: none."""

    @model_validator(mode="after")
    def _tiers(self) -> Self:
        if self.event_buffer_max_size and not self.enable_block_reuse:
            raise ValueError("event_buffer_max_size tells of blocks kept for reuse, and enable_block_reuse is False")
        if self.host_cache_size and not self.enable_block_reuse:
            raise ValueError("host_cache_size keeps blocks to be reused, and enable_block_reuse is False")
        if self.secondary_offload_min_priority is not None and not self.host_cache_size:
            raise ValueError(
                "secondary_offload_min_priority is about the host tier; set host_cache_size, or leave it out"
            )
        if self.disk_cache_size and not self.host_cache_size:
            raise ValueError("disk_cache_size takes what has to make room on the host; set host_cache_size as well")
        if bool(self.disk_cache_size) != (self.disk_cache_path is not None):
            raise ValueError("disk_cache_size and disk_cache_path go together: set both or neither")
        return self


class QuantConfig(Config):
    """How weights are kept. It changes outputs, as another dtype does; see docs/quantisation.md for how much."""

    quant_algo: Literal["int8", "int4", "gguf", "none"]
    """int8, int4: floats are rounded when they are loaded. gguf: the blocks of a GGUF file stay as they are. none: all
    weights are unpacked to ``dtype``. Without a ``QuantConfig`` what a folder has in few bits stays so, where there are
    kernels for its form, and all else is in ``dtype``."""


class BuildCacheConfig(Config):
    """Packed weights on disk, which the next start reads in place of packing them again. It changes no output."""

    cache_root: Path | None = None
    """Their folder; None: ``packed`` in headrace's cache folder ($HEADRACE_CACHE, or ~/.cache/headrace)."""
    max_records: Positive = 10
    """Models kept; the one used last the longest ago goes first."""
    max_cache_storage_gb: Annotated[float, Field(gt=0)] = 256.0
    """In 10^9 bytes."""


class CapacitySchedulerPolicy(enum.Enum):
    """What happens when KV memory is short."""

    MAX_UTILIZATION = "MAX_UTILIZATION"
    """Admit eagerly; preempt and recompute when short. headrace's default: preemption never changes an output."""
    GUARANTEED_NO_EVICT = "GUARANTEED_NO_EVICT"
    """Admit a request only when all it may ever need is free."""
    STATIC_BATCH = "STATIC_BATCH"
    """Admit a new batch only when the running one has ended."""


class ContextChunkingPolicy(enum.Enum):
    """How the rows left over by decodes are shared among prompts."""

    FIRST_COME_FIRST_SERVED = "FIRST_COME_FIRST_SERVED"
    EQUAL_PROGRESS = "EQUAL_PROGRESS"


class SchedulerConfig(Config):
    """Scheduling policies and limits."""

    capacity_scheduler_policy: CapacitySchedulerPolicy = CapacitySchedulerPolicy.MAX_UTILIZATION
    context_chunking_policy: ContextChunkingPolicy = ContextChunkingPolicy.FIRST_COME_FIRST_SERVED
    max_queue_size: Positive | None = None
    """Requests that may wait; one more raises ``QueueFullError``. None: no limit."""


class CudaGraphConfig(Config):
    """Decode steps are recorded once and replayed with one call. On the CPU it is the native core that replays."""

    batch_sizes: tuple[Positive, ...] | None = None
    """Rows that recordings have room for; None: 1, 2, 4, then steps of 8 up to 128, then powers of two."""
    max_batch_size: Annotated[int, Field(ge=0)] = 0
    """Most rows of a recording; 0: all that a decode step may have."""
    enable_padding: bool = True
    """False: a step is replayed only if it has just as many rows as a size says. Nothing is ever padded: the number of
    rows is an argument of a replay."""

    def sizes(self, most: int) -> tuple[int, ...]:
        """The sizes to record, ascending, for steps of up to ``most`` rows."""
        most = min(most, self.max_batch_size or most)
        usual = (1, 2, 4, *range(8, 129, 8), *(128 << i for i in range(1, 16)))
        return tuple(sorted({min(size, most) for size in self.batch_sizes or (*usual, most)}))


class LlmArgs(Config):
    """All arguments of ``LLM`` that this version has."""

    model: str
    tokenizer: Any = None
    """Folder or hub id of a tokenizer, or a tokenizer object; None: the model's own."""
    skip_tokenizer_init: bool = False
    """Token ids in, token ids out."""
    revision: str | None = None
    tokenizer_revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of weights and activations; auto: the checkpoint's."""
    quant_config: QuantConfig | None = None
    """Weights of a few bits; None: in ``dtype``, whatever the file has."""
    load_format: Literal["auto", "dummy"] = "auto"
    """dummy: random weights in the shapes of the configuration."""
    enable_build_cache: bool | BuildCacheConfig = False
    """Keep packed weights on disk, and start from them the next time."""

    max_batch_size: Positive = 64
    """Sequences that run at once."""
    max_num_tokens: Positive | None = None
    """Rows of one step at most; None: see ``rows_of_step``."""
    max_beam_width: Positive | None = None
    """Most beams of a request; None: as many as max_batch_size."""
    max_seq_len: Positive | None = None
    """Prompt + output; None: what the model was made for."""
    max_input_len: Positive | None = None
    """Longest prompt; None: max_seq_len - 1."""

    kv_cache_config: KvCacheConfig = KvCacheConfig()
    scheduler_config: SchedulerConfig = SchedulerConfig()
    speculative_config: SpeculativeConfig | None = None
    enable_chunked_prefill: bool = True
    disable_overlap_scheduler: bool = False
    cuda_graph_config: CudaGraphConfig | None = CudaGraphConfig()
    """None: every step runs operator by operator."""
    sampler_type: Literal["auto", "TRTLLMSampler", "TorchSampler"] = "auto"
    """The native core's ("TRTLLMSampler") or torch's ("TorchSampler"): same tokens, same logprobs. "auto" is the native
    one where there is a native core."""
    guided_decoding_backend: Literal["llguidance", "xgrammar"] | None = "llguidance"
    """What compiles schemas and grammars; None: requests that ask for guided decoding are refused."""
    reasoning_parser: Parser | None = None
    """How outputs mark their thinking: guided decoding begins after it, and chat answers of the server have it apart.
    None: thinking is text like any other."""
    enable_lora: bool = False
    """Requests may name adapters (``lora_request``). A ``lora_config`` turns it on as well."""
    lora_config: LoraConfig | None = None
    """None: that of defaults, with ``enable_lora``."""
    batched_logits_processor: Any = None
    """A ``BatchedLogitsProcessor`` for the requests that ask for it, or where to import it from: ``module:object``."""
    logits_processors: dict[str, str] = Field(default_factory=dict)
    """Processors that requests may name: name to ``module:object``. A class is made one object of."""
    num_threads: Positive | None = None
    """Compute threads; None: the CPUs this process may use."""
    iter_stats_max_iterations: Positive = 1000
    """Iterations that ``get_stats`` remembers between two calls."""
    return_perf_metrics: bool = False

    @field_validator("batched_logits_processor")
    @classmethod
    def _callable(cls, value: Any) -> Any:
        is_path = isinstance(value, str) and is_import_path(value)
        if value is not None and not callable(value) and not is_path:
            raise ValueError("give a BatchedLogitsProcessor, or where to import it from as 'module:object'")
        return value

    @field_validator("logits_processors")
    @classmethod
    def _import_paths(cls, value: dict[str, str]) -> dict[str, str]:
        for name, path in value.items():
            if not is_import_path(path):
                raise ValueError(f"{name!r} is imported from {path!r}; write it as 'module:object'")
        return value

    @field_serializer("batched_logits_processor", when_used="json-unless-none")
    def _name_of_callable(self, value: Any) -> str:
        return value if isinstance(value, str) else type(value).__name__

    @property
    def lora(self) -> LoraConfig | None:
        """None where there are no adapters."""
        return self.lora_config or (LoraConfig() if self.enable_lora else None)

    @model_validator(mode="after")
    def _adapters(self) -> Self:
        if self.lora_config is not None and "enable_lora" in self.model_fields_set and not self.enable_lora:
            raise ValueError("enable_lora=False does not go with a lora_config; leave one of them out")
        return self

    @model_validator(mode="after")
    def _states_of_every_token(self) -> Self:
        if not isinstance(self.speculative_config, SaveHiddenStatesDecodingConfig):
            return self
        cache = self.kv_cache_config
        asked = {
            "enable_block_reuse=True": cache.enable_block_reuse and "enable_block_reuse" in cache.model_fields_set,
            "host_cache_size": bool(cache.host_cache_size),
        }
        for option, is_asked in asked.items():
            if is_asked:
                raise ValueError(
                    f"KvCacheConfig.{option}: of tokens that come from the cache SaveHiddenStatesDecodingConfig has no"
                    " states; leave one of the two out"
                )
        return self

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        if self.max_seq_len is not None and self.max_input_len is not None and self.max_input_len >= self.max_seq_len:
            raise ValueError(
                f"max_input_len={self.max_input_len} leaves no room for output in max_seq_len={self.max_seq_len}"
            )
        if self.enable_build_cache and self.load_format == "dummy":
            raise ValueError("enable_build_cache: load_format='dummy' reads no weights; leave one of the two out")
        return self

    def rows_of_step(self, *, whole_prompts: bool) -> int:
        """``max_num_tokens``, or its default: 512, more only if all that decode would not fit. Products are at their
        full speed with so many rows, and those that decode meanwhile wait a third as long as with 2,048.

        ``whole_prompts``: the model reads a prompt in one step. It and a build without chunked prefill get 8,192.
        """
        if self.max_num_tokens is not None:
            return self.max_num_tokens
        if whole_prompts or not self.enable_chunked_prefill:
            return _WHOLE_PROMPT
        return max(_CHUNK, self.most_decoding_rows)

    @property
    def max_drafts(self) -> int:
        """Draft tokens of a sequence in one step at most, one after another."""
        return 0 if self.speculative_config is None else self.speculative_config.max_draft_len

    @property
    def more_drafts(self) -> int:
        """Draft tokens of a sequence in one step beside those, at most: of a tree."""
        config = self.speculative_config
        return config.total_drafts - config.max_draft_len if isinstance(config, EagleDecodingConfig) else 0

    @property
    def most_decoding_rows(self) -> int:
        """Rows of a step in which everybody decodes, at most."""
        return self.max_batch_size * (1 + self.max_drafts) + self.most_trees * self.more_drafts

    @property
    def most_trees(self) -> int:
        """Sequences that may have a tree of drafts in a step. Each takes blocks of the cache, and rows that cost more
        the more there are."""
        config = self.speculative_config
        if not isinstance(config, EagleDecodingConfig) or not config.use_dynamic_tree:
            return 0
        return min(self.max_batch_size, max(1, _LANES // config.n_lanes))

    @classmethod
    def from_call(cls, model: Any, options: dict[str, Any]) -> LlmArgs:
        """Checks the keyword arguments of ``LLM``. Raises ``ConfigError`` for the first that is wrong."""
        refuse_missing_args(options)
        neutral = {row.option for row in MISSING_ARGS}
        return cls(model=str(model), **{name: value for name, value in options.items() if name not in neutral})
