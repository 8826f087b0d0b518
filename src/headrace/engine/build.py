"""The host's build step: from checked arguments to a running engine. The only place here that reads configuration."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.cache.manager import CacheManager, CacheOptions
from headrace.core.clock import SystemClock
from headrace.core.config import LlmArgs, NGramDecodingConfig
from headrace.core.errors import ConfigError, EngineDeadError, ModelError
from headrace.core.features import resolve
from headrace.core.phases import Phases
from headrace.executor.base import Capacity
from headrace.executor.inproc import InprocExecutor
from headrace.runner.build import build_worker
from headrace.runner.memory import MemoryPlan
from headrace.sched.options import SchedulerOptions
from headrace.sched.scheduler import Scheduler
from headrace.spec.ngram import NGramProposer
from headrace.spec.proposer import NoProposer, Proposer
from headrace.tokenizer.load import load_tokenizer
from headrace.tokenizer.tokenizer import Tokenizer
from headrace.weights.checkpoint import Checkpoint, open_checkpoint
from headrace.weights.resolve import resolve_model

from .front import Front, FrontLimits
from .loop import EngineLoop
from .stats import StatsRecorder

log = logging.getLogger("headrace")


@dataclass(slots=True)
class Engine:
    """A running engine and what is known about it."""

    front: Front
    loop: EngineLoop
    executor: InprocExecutor
    stats: StatsRecorder
    tokenizer: Tokenizer | None
    phases: Phases
    memory: MemoryPlan
    effective: dict[str, Any]

    def get_stats(self, timeout: float | None) -> list[dict[str, Any]]:
        """Iterations since the last call, then a snapshot with ``witnesses``."""
        if self.loop.dead is not None:
            raise EngineDeadError(str(self.loop.dead)) from self.loop.dead
        now = self.loop.call_in_loop(lambda scheduler: scheduler.stats() | {"witnesses": self.stats.witnesses()})
        snapshot = now.result(timeout)
        snapshot["witnesses"] |= self.front.counters
        return [*self.stats.drain(), snapshot]

    def check_integrity(self) -> None:
        """Raises ``IntegrityError`` if the books of the scheduler or the cache do not balance."""
        self.loop.call_in_loop(lambda scheduler: scheduler.check_integrity()).result()

    def shutdown(self) -> None:
        """Cancels what runs and gives everything back. May be called twice."""
        self.loop.stop(drain=False, timeout=30)
        self.executor.close()


def build_engine(args: LlmArgs) -> Engine:
    """Finds the model, builds the worker, starts the loop. What was started is stopped if a later part fails."""
    phases = Phases()
    resolve(_active_features(args))
    with phases.time("find model"):
        found = resolve_model(args.model, revision=args.revision, on_note=log.warning)
    with phases.time("open checkpoint"):
        checkpoint, config, generation = _open(found.path, args.load_format)
    with phases.time("load tokenizer"):
        tokenizer = _tokenizer(args, found.path)
    eos_ids = _eos_ids(config, generation, tokenizer)
    executor = InprocExecutor(lambda: build_worker(args, config, checkpoint, phases))
    try:
        capacity = executor.start()
        with phases.time("start loop"):
            engine = _assemble(args, executor, capacity, tokenizer, eos_ids, phases)
            engine.loop.start()
    except BaseException:
        executor.close()
        raise
    engine.effective |= {"model_path": str(found.path), "eos_ids": sorted(eos_ids)}
    log.info("memory: %s", engine.memory)
    return engine


def _assemble(
    args: LlmArgs,
    executor: InprocExecutor,
    capacity: Capacity,
    tokenizer: Tokenizer | None,
    eos_ids: frozenset[int],
    phases: Phases,
) -> Engine:
    clock = SystemClock()
    depth = 1 if args.disable_overlap_scheduler else 2
    cache = args.kv_cache_config
    manager = CacheManager(
        capacity.groups,
        capacity.arena,
        CacheOptions(block_reuse=cache.enable_block_reuse, partial_reuse=cache.enable_partial_reuse),
    )
    policies = args.scheduler_config
    options = SchedulerOptions(
        max_batch_size=args.max_batch_size,
        max_num_tokens=args.max_num_tokens,
        max_seq_len=capacity.max_seq_len,
        chunked_prefill=args.enable_chunked_prefill,
        capacity_policy=policies.capacity_scheduler_policy.value,
        chunking_policy=policies.context_chunking_policy.value,
        max_queue_size=policies.max_queue_size,
        depth=depth,
    )
    scheduler = Scheduler(manager, options, _proposer(args.speculative_config), clock)
    limits = FrontLimits(
        vocab_size=capacity.vocab_size,
        max_seq_len=capacity.max_seq_len,
        max_input_len=_max_input_len(args, capacity),
        eos_ids=eos_ids,
    )
    front = Front(limits, tokenizer, clock)
    stats = StatsRecorder(scheduler, clock, args.iter_stats_max_iterations)
    loop = EngineLoop(executor, scheduler, depth, front.deliver, clock, stats.observe)
    front.attach(loop)
    memory, effective = executor.call("describe")
    return Engine(front, loop, executor, stats, tokenizer, phases, memory, effective)


def _active_features(args: LlmArgs) -> Iterable[str]:
    cache = args.kv_cache_config
    switches = {
        "batching": args.max_batch_size > 1,
        "chunked_prefill": args.enable_chunked_prefill,
        "kv_reuse": cache.enable_block_reuse,
        "partial_reuse": cache.enable_block_reuse and cache.enable_partial_reuse,
        "overlap": not args.disable_overlap_scheduler,
        "ngram": args.speculative_config is not None,
    }
    return (name for name, on in switches.items() if on)


def _proposer(config: NGramDecodingConfig | None) -> Proposer:
    if config is None:
        return NoProposer()
    return NGramProposer(
        config.max_draft_len,
        config.max_matching_ngram_size,
        is_keep_all=config.is_keep_all,
        is_use_oldest=config.is_use_oldest,
        is_public_pool=config.is_public_pool,
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


def _tokenizer(args: LlmArgs, model_path: Path) -> Tokenizer | None:
    if args.skip_tokenizer_init:
        return None
    if args.tokenizer is None:
        return load_tokenizer(model_path)
    if isinstance(args.tokenizer, Tokenizer):
        return args.tokenizer
    if isinstance(args.tokenizer, (str, Path)) and Path(args.tokenizer).expanduser().exists():
        return load_tokenizer(Path(args.tokenizer).expanduser())
    if isinstance(args.tokenizer, str):
        return load_tokenizer(resolve_model(args.tokenizer, revision=args.tokenizer_revision).path)
    raise ConfigError(
        f"tokenizer is a {type(args.tokenizer).__name__}; give a folder, a hub id or a headrace Tokenizer"
    )


def _eos_ids(config: dict[str, Any], generation: dict[str, Any], tokenizer: Tokenizer | None) -> frozenset[int]:
    """Every id that one of the model's own files calls an end of sequence."""
    ids: set[int] = set()
    for named in (config.get("eos_token_id"), generation.get("eos_token_id")):
        ids.update(named if isinstance(named, list) else [] if named is None else [named])
    if tokenizer is not None:
        ids.update(tokenizer.eos_ids)
    return frozenset(ids)


def _max_input_len(args: LlmArgs, capacity: Capacity) -> int:
    return capacity.max_seq_len - 1 if args.max_input_len is None else min(args.max_input_len, capacity.max_seq_len - 1)
