"""The host's build step: from checked arguments to a running engine. It and ``find`` read configuration."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headrace.cache.manager import CacheManager, CacheOptions
from headrace.core.clock import SystemClock
from headrace.core.config import LlmArgs
from headrace.core.errors import ConfigError, ModelError, RequestError
from headrace.core.features import absent_with_states, absent_without
from headrace.core.phases import Phases
from headrace.core.request import Request
from headrace.core.retention import DEFAULT_PRIORITY
from headrace.core.speculative import (
    DecodingBaseConfig,
    DraftTargetDecodingConfig,
    EagleDecodingConfig,
    MTPDecodingConfig,
    NGramDecodingConfig,
    SADecodingConfig,
    SaveHiddenStatesDecodingConfig,
    UserProvidedDecodingConfig,
)
from headrace.executor.base import Capacity
from headrace.executor.inproc import InprocExecutor
from headrace.guided import Grammar, Thinking, make_compiler, vocabulary_of
from headrace.runner.build import ModelSource, build_worker
from headrace.sched.options import SchedulerOptions
from headrace.sched.scheduler import Scheduler
from headrace.spec import (
    FULL_PACE,
    AdaptivePace,
    NGramProposer,
    NoProposer,
    Pace,
    Proposer,
    SuffixProposer,
    UserProposer,
    WorkerProposer,
)
from headrace.tokenizer.tokenizer import Tokenizer
from headrace.weights.checkpoint import Checkpoint, open_checkpoint
from headrace.weights.peft import read_adapter
from headrace.weights.resolve import resolve_model

from .adapters import NO_ADAPTER_LOADING, AdapterLoading, WorkerAdapters
from .auto import with_drafter
from .backend import StartReport
from .engine import Engine
from .find import check_features, find_media, find_model, find_reasoning, find_tokenizer
from .grammars import Compile, GrammarCompiling
from .local import LocalBackend
from .stats import StatsRecorder

log = logging.getLogger("headrace")


def build_engine(args: LlmArgs) -> Engine:
    """An engine in this process, its loop turning. What was started is stopped if a later part fails."""
    phases = Phases()
    check_features(args)
    path = find_model(args, phases)
    tokenizer = find_tokenizer(args, path, phases)
    media, reasoning = find_media(path), find_reasoning(args, tokenizer)
    backend, report = build_backend(args, path, phases)
    return Engine(backend, report, tokenizer, SystemClock(), media=media, reasoning=reasoning)


def build_backend(args: LlmArgs, path: Path, phases: Phases) -> tuple[LocalBackend, StartReport]:
    """Builds the worker, and the loop that drives it. What was started is stopped if a later part fails."""
    with phases.time("open checkpoint"):
        checkpoint, config, generation = _open(path, args.load_format)
        args = with_drafter(args, config, checkpoint)
        sources = [ModelSource(config, checkpoint), *_open_draft(args)]
    executor = InprocExecutor(lambda: build_worker(args, sources, phases))
    try:
        capacity = executor.start()
        with phases.time("assemble loop"):
            memory, effective = executor.call("describe")
            absent = _absent_features(args, capacity)
            eos_ids = _eos_ids(config, generation)
            get_tokenizer = functools.cache(lambda: find_tokenizer(args, path, Phases()))
            adapters = _adapters(args, executor)
            backend = _assemble(
                args,
                executor,
                capacity,
                lambda: _compile(args, get_tokenizer(), capacity, eos_ids),
                get_tokenizer,
                adapters,
            )
        _load_adapters(args, adapters, phases)
    except BaseException:
        executor.close()
        raise
    log.info("memory: %s", memory)
    return backend, StartReport(
        vocab_size=capacity.vocab_size,
        max_seq_len=capacity.max_seq_len,
        max_input_len=_max_input_len(args, capacity),
        eos_ids=eos_ids,
        pooling=capacity.pooling,
        takes_adapters=args.lora is not None,
        keeps_prefixes=_keeps_prefixes(args) and bool(capacity.groups),
        phases=phases.done,
        memory=memory.rows(),
        effective=effective
        | {"model_path": str(path), "absent_features": absent, "speculative_config": _given(args.speculative_config)},
    )


def _adapters(args: LlmArgs, executor: InprocExecutor) -> AdapterLoading:
    if args.lora is None:
        return NO_ADAPTER_LOADING
    return WorkerAdapters(executor, args.lora.n_adapters, SystemClock(), read_adapter)


def _load_adapters(args: LlmArgs, adapters: AdapterLoading, phases: Phases) -> None:
    """Those of ``lora_dir`` and ``lora_modules``. Raises ``ConfigError``."""
    if args.lora is None or not args.lora.at_start:
        return
    with phases.time("load adapters"):
        for name, folder in args.lora.at_start.items():
            try:
                adapters.load(name, folder).result()
            except RequestError as error:
                field = "lora_modules" if name in args.lora.lora_modules else "lora_dir"
                raise ConfigError(f"LoraConfig.{field}: {error}") from None


def _assemble(
    args: LlmArgs,
    executor: InprocExecutor,
    capacity: Capacity,
    make_compile: Callable[[], Compile],
    get_tokenizer: Callable[[], Tokenizer | None],
    adapters: AdapterLoading,
) -> LocalBackend:
    clock = SystemClock()
    depth = 1 if args.disable_overlap_scheduler else 2
    cache = args.kv_cache_config
    keeps = _keeps_prefixes(args)
    least = cache.secondary_offload_min_priority
    manager = CacheManager(
        capacity.groups,
        capacity.arena,
        CacheOptions(
            keeps,
            keeps and cache.enable_partial_reuse,
            cache.state_checkpoint_interval,
            capacity.tiers,
            min_offload_priority=DEFAULT_PRIORITY if least is None else least,
            event_buffer=cache.event_buffer_max_size,
            narrowed=capacity.narrowed,
        ),
        clock,
    )
    policies = args.scheduler_config
    options = SchedulerOptions(
        max_batch_size=args.max_batch_size,
        max_num_tokens=args.rows_of_step(whole_prompts=capacity.reads_whole_prompts),
        max_seq_len=capacity.max_seq_len,
        chunked_prefill=args.enable_chunked_prefill and not capacity.reads_whole_prompts,
        whole_prompts=capacity.reads_whole_prompts,
        capacity_policy=policies.capacity_scheduler_policy.value,
        chunking_policy=policies.context_chunking_policy.value,
        max_beam_width=args.max_beam_width,
        max_queue_size=policies.max_queue_size,
        depth=depth,
        more_drafts=args.more_drafts,
        most_trees=args.most_trees,
        tells_ends=_saves(args),
    )
    scheduler = Scheduler(
        manager, options, _proposer(args.speculative_config, capacity.vocab_size), clock, _pace(args.speculative_config)
    )
    drafts = args.speculative_config
    drafts_by = "" if drafts is None else str(_given(drafts)["decoding_type"])  # type: ignore[index]
    stats = StatsRecorder(scheduler, clock, args.iter_stats_max_iterations, drafts_by)
    grammars = GrammarCompiling(make_compile, clock)
    return LocalBackend(executor, scheduler, depth, clock, stats, grammars, get_tokenizer, adapters)


def _saves(args: LlmArgs) -> bool:
    """Hidden states of every token go to disk: every token is computed."""
    return isinstance(args.speculative_config, SaveHiddenStatesDecodingConfig)


def _keeps_prefixes(args: LlmArgs) -> bool:
    return args.kv_cache_config.enable_block_reuse and not _saves(args)


def _compile(args: LlmArgs, tokenizer: Tokenizer | None, capacity: Capacity, eos_ids: frozenset[int]) -> Compile:
    """By ``guided_decoding_backend``, after the thinking part where there is one. Raises ``RequestError``."""
    if args.guided_decoding_backend is None:
        raise RequestError(
            "guided_decoding is turned off here (guided_decoding_backend=None); start with 'llguidance' or 'xgrammar'",
            param="guided_decoding",
        )
    vocabulary = vocabulary_of(tokenizer, capacity.vocab_size, eos_ids)
    compiler = make_compiler(args.guided_decoding_backend, vocabulary)
    reasoning = find_reasoning(args, tokenizer)
    thinking = None if reasoning is None else Thinking(reasoning, vocabulary)

    def compile_for(request: Request) -> Grammar:
        grammar = compiler.compile(request.sampling.guided_decoding)
        return grammar if thinking is None else thinking.before(grammar, request.prompt_token_ids)

    return compile_for


def _absent_features(args: LlmArgs, capacity: Capacity) -> dict[str, str]:
    """Features that cannot act on this model, by name, with the reason. Raises ``ConfigError`` for one that was asked
    for; what is on by default is left out."""
    pooling = capacity.pooling
    if not pooling.generates:
        for name in ("speculative_config", "batched_logits_processor"):
            if getattr(args, name) is not None:
                raise ConfigError(f"{name}: the model gives {pooling.gives}, no text; leave {name} out")
        lacking = ["output"] if "last" in pooling.pooling_types else ["output", "prefix"]
        return absent_without(*lacking, *(["past"] if capacity.reads_whole_prompts else []))
    cache = args.kv_cache_config
    if isinstance(args.speculative_config, SaveHiddenStatesDecodingConfig):
        why = "SaveHiddenStatesDecodingConfig needs every token to be computed"
        return absent_with_states() | {"kv_reuse": why, "partial_reuse": why}
    if all(group.spec.resumes_inside for group in capacity.groups):
        if "state_checkpoint_interval" in cache.model_fields_set:
            raise ConfigError(
                f"KvCacheConfig.state_checkpoint_interval={cache.state_checkpoint_interval}: this model has no"
                " recurrent states, and what it keeps can be resumed anywhere; leave it out"
            )
        return {}
    absent = absent_with_states()
    if cache.enable_partial_reuse and "enable_partial_reuse" in cache.model_fields_set:
        raise ConfigError(
            f"KvCacheConfig.enable_partial_reuse=True: {absent['partial_reuse']}, and this model has such states;"
            " leave it out, or set it to False"
        )
    return absent


def _proposer(config: DecodingBaseConfig | None, vocab_size: int) -> Proposer:
    match config:
        case None | SaveHiddenStatesDecodingConfig():
            return NoProposer()
        case NGramDecodingConfig():
            return NGramProposer(
                config.max_draft_len,
                config.max_matching_ngram_size,
                is_keep_all=config.is_keep_all,
                is_use_oldest=config.is_use_oldest,
                is_public_pool=config.is_public_pool,
            )
        case SADecodingConfig():
            return SuffixProposer(config.max_draft_len, config.min_matching_length)
        case UserProvidedDecodingConfig():
            return UserProposer(config.drafter, config.max_draft_len, vocab_size)
        case DraftTargetDecodingConfig() | EagleDecodingConfig() | MTPDecodingConfig():
            # Where an output depends on its drafts, their number must not depend on what is in flight.
            return WorkerProposer(config.max_draft_len, needs_tokens=config.changes_outputs)
    raise ConfigError(f"speculative_config is a {type(config).__name__}, which nothing drafts for")


def _given(config: DecodingBaseConfig | None) -> dict[str, Any] | None:
    """What was set, and what was chosen by ``AutoDecodingConfig``."""
    return None if config is None else config.model_dump(mode="json", exclude_unset=True)


def _pace(config: DecodingBaseConfig | None) -> Pace:
    if config is None:
        return FULL_PACE
    return AdaptivePace(
        max_concurrency=config.max_concurrency,
        schedule=config.draft_len_schedule,
        window=config.acceptance_window,
        threshold=config.acceptance_length_threshold,
    )


def _open(path: Path, load_format: str) -> tuple[Checkpoint | None, dict[str, Any], dict[str, Any]]:
    """(checkpoint, its configuration, its generation defaults); no checkpoint for random weights."""
    if load_format == "dummy" and path.is_dir():
        config_file = path / "config.json"
        if not config_file.is_file():
            raise ModelError(f"{path} has no config.json, which load_format='dummy' takes the shapes from")
        return None, json.loads(config_file.read_text()), {}
    checkpoint = open_checkpoint(path)
    config, generation = checkpoint.config(), checkpoint.generation_config()
    return (None if load_format == "dummy" else checkpoint), config, generation


def _open_draft(args: LlmArgs) -> list[ModelSource]:
    """What drafts, if that is a model or a head with files of its own."""
    config = args.speculative_config
    if not isinstance(config, DraftTargetDecodingConfig | EagleDecodingConfig | MTPDecodingConfig):
        return []
    if config.speculative_model is None:
        return []
    path = resolve_model(config.speculative_model, revision=None, on_note=log.warning).path
    # A head belongs to real weights: what random ones would make of each other says nothing.
    checkpoint, fields, _ = _open(path, args.load_format if isinstance(config, DraftTargetDecodingConfig) else "auto")
    return [ModelSource(fields, checkpoint)]


def _eos_ids(config: dict[str, Any], generation: dict[str, Any]) -> frozenset[int]:
    """Every id that one of the model's own files calls an end of sequence."""
    ids: set[int] = set()
    text = config.get("text_config") or {}
    for named in (config.get("eos_token_id"), text.get("eos_token_id"), generation.get("eos_token_id")):
        ids.update(named if isinstance(named, list) else [] if named is None else [named])
    return frozenset(ids)


def _max_input_len(args: LlmArgs, capacity: Capacity) -> int:
    return capacity.max_seq_len - 1 if args.max_input_len is None else min(args.max_input_len, capacity.max_seq_len - 1)
