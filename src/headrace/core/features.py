"""The capability table: every feature the engine knows, what it goes with, and why something is not there.

One table answers three questions: what ``headrace features`` prints, what ``resolve`` refuses at construction, and
which pairs the suite must prove. A feature does not know another; a conflict is a row here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .errors import ConfigError, RequestError


@dataclass(frozen=True, slots=True)
class Feature:
    """One column of the matrix."""

    name: str
    title: str
    turned_on_by: str
    witness: str
    """Counter in ``get_stats`` that grows only when the feature acted."""
    on_by_default: bool = False
    excludes: Mapping[str, str] | None = None
    """Names of features it cannot run with, each with the reason."""
    not_on: Mapping[str, str] | None = None
    """Names of features whose requests it leaves as they are, each with the reason; it acts on those beside them."""
    not_with_states: str | None = None
    """Why it cannot act on a model with recurrent states; None: it can."""
    acts_on: Literal["prompt", "past", "prefix", "output"] = "output"
    """What a model must have for it to act. All have a prompt, and all that generate have the rest; ``LACKS`` says why
    one that only encodes may not."""


@dataclass(frozen=True, slots=True)
class Missing:
    """An option that the API knows by name but this version does not have. Setting it is an error, never ignored."""

    option: str
    reason: str
    neutral: tuple[Any, ...] = (None,)
    """Values that ask for nothing, and are accepted."""


def _one_proposer(*others: str) -> dict[str, str]:
    return dict.fromkeys(others, "speculative_config names one way to draft")


_BY_EAGLE3 = ("eagle3", "eagle3_two_model", "draft_tree")
_NOT_ON_BEAMS = {
    "beam_search": "a beam goes on when all beams of its request have been compared: nothing is planned ahead of that"
}

FEATURES: tuple[Feature, ...] = (
    Feature(
        "batching",
        "Continuous batching",
        "several requests at once; max_batch_size",
        "batched_steps",
        on_by_default=True,
        acts_on="prompt",
    ),
    Feature(
        "chunked_prefill",
        "Chunked prefill",
        "enable_chunked_prefill=True, max_num_tokens",
        "chunks",
        on_by_default=True,
        acts_on="past",
    ),
    Feature(
        "kv_reuse",
        "KV cache reuse",
        "KvCacheConfig(enable_block_reuse=True)",
        "cached_tokens.device",
        on_by_default=True,
        acts_on="prefix",
    ),
    Feature(
        "partial_reuse",
        "Partial block reuse",
        "KvCacheConfig(enable_partial_reuse=True)",
        "partial_reuse_tokens",
        on_by_default=True,
        not_with_states="a recurrent state can be taken up where a block ends, not inside it",
        acts_on="prefix",
    ),
    Feature(
        "retention",
        "Priorities and retention in the KV cache",
        "generate(kv_cache_retention_config)",
        "prioritised_blocks",
    ),
    Feature(
        "host_cache",
        "KV cache offloading to host memory",
        "KvCacheConfig(host_cache_size)",
        "blocks_onboarded",
        acts_on="prefix",
    ),
    Feature(
        "disk_cache",
        "KV cache offloading to disk",
        "KvCacheConfig(host_cache_size, disk_cache_size, disk_cache_path)",
        "blocks_fetched",
        acts_on="prefix",
    ),
    Feature(
        "windows",
        "Sliding windows set by hand",
        "KvCacheConfig(max_attention_window)",
        "blocks_freed_by_max_attention_window",
        acts_on="past",
    ),
    Feature(
        "preemption",
        "Preemption by recompute",
        "capacity_scheduler_policy=MAX_UTILIZATION and a cache too small for all",
        "preemptions",
        on_by_default=True,
    ),
    Feature(
        "overlap",
        "Overlap scheduler",
        "default; disable_overlap_scheduler=True off",
        "overlapped_steps",
        on_by_default=True,
        acts_on="prompt",
        not_on=_NOT_ON_BEAMS,
    ),
    Feature(
        "graph",
        "Graph capture and replay",
        "default with native operators; cuda_graph_config=None off",
        "graph_replays",
        on_by_default=True,
    ),
    Feature(
        "ngram",
        "N-gram speculation",
        "speculative_config=NGramDecodingConfig(max_draft_len)",
        "drafts_proposed",
        not_on=_NOT_ON_BEAMS,
    ),
    Feature(
        "suffix",
        "Suffix automaton speculation",
        "speculative_config=SADecodingConfig(max_draft_len)",
        "drafts_proposed",
        excludes=_one_proposer("ngram"),
        not_on=_NOT_ON_BEAMS,
    ),
    Feature(
        "draft_model",
        "Draft model speculation",
        "speculative_config=DraftTargetDecodingConfig(max_draft_len, speculative_model)",
        "draft_model_tokens",
        excludes=_one_proposer("ngram", "suffix"),
        not_on=_NOT_ON_BEAMS,
    ),
    Feature(
        "eagle3",
        "EAGLE-3 speculation, one model",
        "speculative_config=EagleDecodingConfig(max_draft_len, speculative_model)",
        "draft_head_tokens",
        excludes=_one_proposer("ngram", "suffix", "draft_model"),
        not_on=_NOT_ON_BEAMS,
    ),
    Feature(
        "eagle3_two_model",
        "EAGLE-3 speculation, two models",
        "speculative_config=EagleDecodingConfig(max_draft_len, speculative_model, eagle3_one_model=False)",
        "draft_cache_blocks",
        excludes=_one_proposer("ngram", "suffix", "draft_model", "eagle3"),
        not_on=_NOT_ON_BEAMS,
    ),
    Feature(
        "draft_tree",
        "EAGLE-3 speculation, dynamic trees",
        "speculative_config=EagleDecodingConfig(max_draft_len, speculative_model, use_dynamic_tree=True,"
        " dynamic_tree_max_topK)",
        "draft_branches",
        excludes=_one_proposer("ngram", "suffix", "draft_model", "eagle3", "eagle3_two_model"),
        not_on=_NOT_ON_BEAMS,
    ),
    Feature(
        "mtp",
        "MTP speculation",
        "speculative_config=MTPDecodingConfig(max_draft_len, use_mtp_vanilla, mtp_eagle_one_model)",
        "mtp_tokens",
        excludes=_one_proposer("ngram", "suffix", "draft_model", *_BY_EAGLE3),
        not_on=_NOT_ON_BEAMS,
    ),
    Feature(
        "user_drafter",
        "Drafts of the user's function",
        "speculative_config=UserProvidedDecodingConfig(max_draft_len, drafter)",
        "drafts_proposed",
        excludes=_one_proposer("ngram", "suffix", "draft_model", *_BY_EAGLE3, "mtp"),
        not_on=_NOT_ON_BEAMS,
    ),
    Feature(
        "save_states",
        "Hidden states on disk",
        "speculative_config=SaveHiddenStatesDecodingConfig(output_directory)",
        "saved_states",
        excludes=_one_proposer("ngram", "suffix", "draft_model", *_BY_EAGLE3, "mtp", "user_drafter")
        | dict.fromkeys(
            ("kv_reuse", "partial_reuse", "retention", "host_cache", "disk_cache"), "every token has to be computed"
        )
        | {"beam_search": "beams share what was computed"},
    ),
    Feature("n", "Several outputs of one prompt", "SamplingParams(n)", "forked_outputs"),
    Feature("best_of", "The best of several outputs", "SamplingParams(best_of)", "outputs_compared"),
    Feature("beam_search", "Beam search", "SamplingParams(use_beam_search, best_of)", "beam_forks"),
    Feature("cancel", "Cancel in every state", "RequestOutput.abort()", "cancelled", acts_on="prompt"),
    Feature("priority", "Priorities", "generate_async(priority)", "prioritised", acts_on="prompt"),
    Feature("logprobs", "Logprobs of outputs", "SamplingParams(logprobs)", "logprob_rows"),
    Feature("prompt_logprobs", "Logprobs of the prompt", "SamplingParams(prompt_logprobs)", "prompt_logprob_rows"),
    Feature(
        "logits",
        "Logits of prompts and outputs",
        "SamplingParams(return_context_logits, return_generation_logits)",
        "logit_rows",
    ),
    Feature("penalties", "Penalties, bias, bad words, n-gram bans, minimum length", "SamplingParams", "processed_rows"),
    Feature(
        "logits_processor",
        "Logits processors",
        "SamplingParams(logits_processor), LLM(batched_logits_processor)",
        "processor_calls",
    ),
    Feature("guided", "Guided decoding", "SamplingParams(guided_decoding), response_format", "masked_rows"),
    Feature("stop_strings", "Stop strings", "SamplingParams(stop)", "stop_string_hits"),
    Feature("lora", "LoRA adapters", "enable_lora=True, generate(lora_request)", "adapter_rows", acts_on="prompt"),
    Feature(
        "encode", "Embeddings and other pooled results", "LLM.encode(), PoolingParams", "pooled_rows", acts_on="prompt"
    ),
)

_LATER = "not in this version"

MISSING_ARGS: tuple[Missing, ...] = (
    Missing("trust_remote_code", "headrace never runs code that comes with a checkpoint", (None, False)),
    Missing("tensor_parallel_size", f"more than one rank is {_LATER}", (None, 1)),
    Missing("pipeline_parallel_size", f"more than one rank is {_LATER}", (None, 1)),
    Missing("context_parallel_size", f"more than one rank is {_LATER}", (None, 1)),
    Missing("moe_expert_parallel_size", f"more than one rank is {_LATER}", (None, 1)),
    Missing("moe_tensor_parallel_size", f"more than one rank is {_LATER}", (None, 1)),
    Missing("enable_attention_dp", f"attention data parallelism is {_LATER}", (None, False)),
    Missing("attention_dp_config", f"attention data parallelism is {_LATER}"),
    Missing("torch_compile_config", "headrace does not use torch.compile; leave it out"),
    Missing("cache_transceiver_config", f"disaggregated serving is {_LATER}"),
    Missing("sparse_attention_config", f"sparse attention is {_LATER}"),
    Missing("kv_connector_config", f"KV connectors are {_LATER}"),
    Missing("mm_encoder_only", f"an encoder apart from its model is {_LATER}", (None, False)),
    Missing("gather_generation_logits", "SamplingParams(return_generation_logits=True) asks for them", (None, False)),
    Missing("peft_cache_config", "adapters lie in main memory, where the model computes; see LoraConfig.max_loras"),
    Missing("cp_config", f"more than one rank is {_LATER}", (None, {})),
    Missing("moe_cluster_parallel_size", f"more than one rank is {_LATER}", (None, 1)),
    Missing("moe_config", "there is one implementation of experts; leave it out"),
    Missing("gpus_per_node", "this runs on CPUs"),
    Missing("orchestrator_type", f"more than one rank is {_LATER}"),
    Missing("attn_backend", "the operator table chooses; see headrace doctor"),
    Missing("enable_autotuner", "kernels are not chosen by timing: that would change output bits", (None, False)),
    Missing("stream_interval", "every step is streamed", (None, 1)),
    Missing("num_postprocess_workers", "text is made beside the engine, by the process that serves", (None, 0)),
    Missing("print_iter_log", "iterations are read with get_stats or GET /metrics", (None, False)),
    Missing("enable_iter_perf_stats", "iteration statistics are always kept", (None, True)),
    Missing("enable_iter_req_stats", f"statistics of requests by iteration are {_LATER}", (None, False)),
    Missing("request_stats_max_iterations", f"statistics of requests by iteration are {_LATER}"),
    Missing("perf_metrics_max_requests", "this is a setting of headrace serve", (None, 0)),
    Missing("batch_wait_timeout_ms", "requests join at the next step; nobody waits for a batch to fill", (None, 0)),
    Missing("batch_wait_timeout_iters", "requests join at the next step; nobody waits for a batch to fill", (None, 0)),
)

MISSING_SAMPLING: tuple[Missing, ...] = (
    Missing("return_encoder_output", f"encoder-decoder models are {_LATER}", (False,)),
    Missing("additional_model_outputs", f"additional outputs are {_LATER}"),
)


def feature(name: str) -> Feature:
    """The row of that name."""
    return next(row for row in FEATURES if row.name == name)


def resolve(active: Iterable[str]) -> frozenset[str]:
    """The set of active features, or ``ConfigError`` naming two that exclude each other and why."""
    names = frozenset(active)
    for row in FEATURES:
        for other, reason in (row.excludes or {}).items():
            if row.name in names and other in names:
                raise ConfigError(f"{row.name} does not go with {other}: {reason}. Turn one of them off.")
    return names


def absent_with_states() -> dict[str, str]:
    """Features that cannot act on a model with recurrent states: name -> reason."""
    return {row.name: row.not_with_states for row in FEATURES if row.not_with_states is not None}


LACKS = {
    "past": "the model reads a prompt as a whole and keeps nothing",
    "prefix": "the model gives something for every part of a prompt, so none of its rows can come from a cache",
    "output": "the model only encodes: it gives no output",
}
"""Why a feature does not act on a model that has not what it acts on."""


def absent_without(*lacking: str) -> dict[str, str]:
    """Features that cannot act on a model that only encodes: name -> reason. ``lacking``: keys of ``LACKS``; without a
    past there is no prefix either."""
    return {
        row.name: LACKS["past" if row.acts_on == "prefix" and "past" in lacking else row.acts_on]
        for row in FEATURES
        if row.acts_on in lacking
    }


def refuse_missing_args(given: Mapping[str, Any]) -> None:
    """Raises ``ConfigError`` for the first ``LLM`` argument that asks for something this version does not have."""
    for row in MISSING_ARGS:
        if row.option in given and given[row.option] not in row.neutral:
            raise ConfigError(f"{row.option}={given[row.option]!r}: {row.reason}. Leave {row.option} out.")


def refuse_missing_sampling(params: Any) -> None:
    """Raises ``RequestError`` for the first sampling option that asks for something this version does not have."""
    for row in MISSING_SAMPLING:
        value = getattr(params, row.option)
        if value not in row.neutral:
            raise RequestError(f"SamplingParams.{row.option}={value!r}: {row.reason}", param=row.option)
