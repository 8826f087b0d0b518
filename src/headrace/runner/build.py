"""The worker's build step: the only place on the worker's side that reads configuration."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from tqdm import tqdm

from headrace.cache.arena import (
    ArenaLayout,
    TierSizes,
    arena_for_tokens,
    plan_arena,
    tier_layout,
    tier_sectors,
    with_spare,
)
from headrace.cache.groups import CacheGroup, group_layers
from headrace.cache.manager import CacheManager, CacheOptions
from headrace.cache.specs import RecurrentState
from headrace.core.cgroup import usable_cpus
from headrace.core.config import BuildCacheConfig, LlmArgs
from headrace.core.errors import ConfigError
from headrace.core.phases import Phases
from headrace.core.plan import BLOCK_TOKENS
from headrace.core.processors import import_processor
from headrace.core.speculative import DecodingBaseConfig, EagleDecodingConfig, SaveHiddenStatesDecodingConfig
from headrace.executor.base import Capacity
from headrace.layers.adapters import NO_ADAPTERS, Adapters, NoAdapters
from headrace.layers.base import BuildContext
from headrace.models.base import Model
from headrace.models.eagle3 import tapped_layers
from headrace.models.registry import build_model
from headrace.models.taps import Taps, n_layers, tap_layers
from headrace.models.windows import narrow
from headrace.ops.blocks import CACHE_DTYPES, block_layout
from headrace.ops.memory import huge_zeros
from headrace.ops.native import core
from headrace.ops.table import FORCE_VARIABLE, Ops, read_forced, select_ops
from headrace.sampling import (
    Acceptance,
    GuidedSampler,
    NativeSampler,
    ProcessingSampler,
    Relaxed,
    Remembering,
    Sampler,
    SplitSampler,
    TorchSampler,
)
from headrace.weights.checkpoint import Checkpoint
from headrace.weights.dummy import DummyCheckpoint
from headrace.weights.resolve import cache_folder

from .adapters import adapter_rows
from .build_cache import DiskCache, NoCache, WeightCache
from .draft_cache import OwnKeys
from .drafter import Drafter
from .drafting import Drafting, ModelSource, Parts, drafting_by
from .graph import Graphs, NoGraphs, StepGraphs
from .head_keys import HeadKeys, SharedKeys
from .lanes import Lanes, spare_blocks
from .media import NO_MEDIA, CrossMedia, Media
from .memory import MemoryPlan, available_bytes, kv_budget
from .pooling import Poolers
from .saving import NO_SAVER, Saver, StateFiles, StateSaver
from .scheme import scheme_for
from .slots import SlotTable
from .states import NoStates, RecurrentStates, States
from .step import StepRunner
from .tiers import BlockFile, BlockMover
from .worker import Worker

log = logging.getLogger("headrace")

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_DUMMY_SEED = 0


def build_worker(args: LlmArgs, sources: Sequence[ModelSource], phases: Phases) -> Worker:
    """Builds the model, plans memory, reads the weights and lays out the cache.

    Args:
        sources: of the model, and of one that drafts for it if there is such.

    Raises:
        ConfigError, ModelError, CheckpointError: before memory is taken, where that is possible.
    """
    threads = args.num_threads or usable_cpus()
    processors = _processors(args)
    with phases.time("build model"):
        device = torch.device("cpu")
        dtype = _dtype(args.dtype, sources[0].config)
        kv_dtype = CACHE_DTYPES.get(args.kv_cache_config.dtype, dtype)
        ops = _operators(device, dtype, kv_dtype, threads)
        max_drafts = args.max_drafts
        most_rows = min(args.rows_of_step(whole_prompts=False), args.most_decoding_rows)
        places = {"max_seq_len": args.max_seq_len, "max_draft_rows": most_rows if max_drafts else 0}
        ctx = BuildContext(ops, dtype, device, kv_dtype=kv_dtype, **places)
        algorithm = None if args.quant_config is None else args.quant_config.quant_algo
        adapters = _adapters(args, ops)
        model = _adapted_model(sources[0], ctx, algorithm, adapters)
        max_seq_len = _max_seq_len(args, model)
        _refuse_past(args, model)
        windows = args.kv_cache_config.max_attention_window
        narrowed = () if windows is None else narrow(model.cached_layers(), windows, max_seq_len)
        drafting = drafting_by(args.speculative_config, sources, ctx, algorithm, model, max_seq_len)
        models = [model, *drafting.models]
        layers, taps = _captured(args, model)
        sharing = [model] if drafting.has_own_cache else models
        groups, draft_groups = _groups(sharing), _groups(models[len(sharing) :])
    with phases.time("plan memory"):
        slots = _slot_table(args, groups, max_seq_len, max_drafts)
        cache = _weight_cache(args.enable_build_cache)
        n_bytes = sum(one.n_bytes for one in models)
        adapter_bytes = adapters.nbytes(dtype.itemsize)
        spare = spare_blocks(groups, slots.n_lanes, max_drafts)
        taken = n_bytes, (groups, draft_groups), max_seq_len, slots.nbytes, adapter_bytes, spare
        layout, draft_layout, tiers, memory = _plan_memory(args, *taken)
    with phases.time("load weights"):
        for one, source in zip(models, [sources[0], *drafting.sources], strict=True):
            _load(one, source.checkpoint or _dummy(source.config, one, dtype), threads, cache)
        _close(sources)
    with phases.time("lay out cache"):
        arena, own = with_spare(layout, spare)
        views = arena_views(arena, groups, kv_dtype)
        lanes = Lanes(slots, groups, views, own)
        mover = _mover(args, layout, tiers, groups, views, kv_dtype)
        _bind(sharing, groups, views)
        sampler_type, sampler = _sampler(args.sampler_type, args.max_batch_size, model.vocab_size)
        acceptance = _acceptance(args.speculative_config, model.vocab_size)
        if acceptance is not None:
            sampler = SplitSampler(sampler, args.max_batch_size, model.vocab_size, acceptance)
        sizes = _graph_sizes(args, ops, most_rows)
        graphs = _graph_maker(args, ops, groups, sizes)(model, taps or drafting.taps)
        keys: HeadKeys = SharedKeys(groups, slots, device)
        if drafting.has_own_cache:
            tables = _slot_table(args, draft_groups, max_seq_len, max_drafts)
            keys = _own_keys(args, drafting.models, draft_groups, draft_layout, kv_dtype, slots, tables)
        drafter = _drafter(args, drafting, ops, keys, slots, sizes, acceptance, model, lanes)
    capacity = _capacity(args, model, max_seq_len, groups, layout, tiers, narrowed)
    effective = {
        "dtype": str(dtype).removeprefix("torch."),
        "kv_cache_dtype": next(name for name, of_name in CACHE_DTYPES.items() if of_name == kv_dtype),
        **_facts(model),
        "max_seq_len": max_seq_len,
        "num_threads": threads,
        "kv_cache_tokens": memory.kv_tokens,
        "operators": dict(ops.chosen),
        "sampler_type": sampler_type,
        "graph_sizes": list(sizes),
        "lora_modules": list(adapters.modules),
    }
    sampler = ProcessingSampler(GuidedSampler(sampler, model.vocab_size), *processors)
    states = _states(model, ops, groups, max_drafts)
    parts = Poolers(model), states, drafter, _media(model, ops, groups, slots), adapter_rows(adapters), mover
    saver = _saver(args, layers, taps, slots)
    runner = StepRunner(model, sampler, ops, groups, views, slots, graphs, *parts, saver, lanes)
    return Worker(runner, capacity, memory, effective)


def _groups(models: Sequence[Model]) -> tuple[CacheGroup, ...]:
    return group_layers([spec for model in models for spec in model.cache_specs()])


def _own_keys(
    args: LlmArgs,
    models: Sequence[Model],
    groups: Sequence[CacheGroup],
    layout: ArenaLayout,
    kv_dtype: torch.dtype,
    slots: SlotTable,
    tables: SlotTable,
) -> OwnKeys:
    """Lays out a cache for ``models`` alone."""
    views = arena_views(layout, groups, kv_dtype)
    _bind(models, groups, views)
    config = args.kv_cache_config
    options = CacheOptions(config.enable_block_reuse, config.enable_block_reuse and config.enable_partial_reuse)
    return OwnKeys(CacheManager(groups, layout, options), groups, BlockMover(views), slots, tables, views[0].device)


def _drafter(
    args: LlmArgs,
    drafting: Drafting,
    ops: Ops,
    keys: HeadKeys,
    slots: SlotTable,
    sizes: Sequence[int],
    acceptance: Acceptance | None,
    model: Model,
    lanes: Lanes,
) -> Drafter:
    def sampler() -> Sampler:
        if acceptance is not None and acceptance.rejects:
            return TorchSampler(args.max_batch_size, model.vocab_size, Remembering(acceptance.board))
        return _sampler(args.sampler_type, args.max_batch_size, model.vocab_size)[1]

    graphs = _graph_maker(args, ops, keys.groups, sizes)
    views = lanes.layers_from(len(model.cache_specs()))
    return drafting.build(Parts(sampler, ops, keys, slots, graphs, torch.device("cpu"), lanes, views))


def _captured(args: LlmArgs, model: Model) -> tuple[Sequence[int], Taps | None]:
    """Layers whose outputs are to be saved, and how they are seen; None if nothing is."""
    config = args.speculative_config
    if not isinstance(config, SaveHiddenStatesDecodingConfig):
        return (), None
    if not model.pooling.generates:
        raise ConfigError(f"SaveHiddenStatesDecodingConfig: {type(model).__name__} gives no tokens to learn")
    asked = None
    if config.eagle3_layers_to_capture is not None:
        asked = sorted(layer for layer in config.eagle3_layers_to_capture if layer >= 0)
    layers = tapped_layers({}, n_layers(model), asked, "auto", "SaveHiddenStatesDecodingConfig")
    where = "SaveHiddenStatesDecodingConfig.eagle3_layers_to_capture"
    return layers, tap_layers(model, layers, where, last=True)


def _saver(args: LlmArgs, layers: Sequence[int], taps: Taps | None, slots: SlotTable) -> Saver:
    config = args.speculative_config
    if taps is None or not isinstance(config, SaveHiddenStatesDecodingConfig):
        return NO_SAVER
    files = StateFiles(Path(config.output_directory).expanduser(), config.file_prefix, config.write_interval)
    return StateSaver(taps, layers, slots, files)


def _capacity(
    args: LlmArgs,
    model: Model,
    max_seq_len: int,
    groups: tuple[CacheGroup, ...],
    layout: ArenaLayout,
    tiers: TierSizes,
    narrowed: Sequence[int],
) -> Capacity:
    return Capacity(
        n_slots=args.max_batch_size,
        max_seq_len=max_seq_len,
        vocab_size=model.vocab_size,
        groups=groups,
        arena=layout,
        tiers=tiers,
        narrowed=tuple(group.index for group in groups if set(group.layers) & set(narrowed)),
        reads_whole_prompts=model.reads_whole_prompts,
        pooling=model.pooling,
    )


def _refuse_past(args: LlmArgs, model: Model) -> None:
    """Raises ``ConfigError`` for a setting that asks something of the past, of a model that has none."""
    if not model.reads_whole_prompts:
        return
    asked = {
        "enable_chunked_prefill": "enable_chunked_prefill" in args.model_fields_set and args.enable_chunked_prefill,
        "kv_cache_config.max_tokens": args.kv_cache_config.max_tokens is not None,
        "kv_cache_config.max_attention_window": args.kv_cache_config.max_attention_window is not None,
        "kv_cache_config.dtype": args.kv_cache_config.dtype != "auto",
        "kv_cache_config.host_cache_size": bool(args.kv_cache_config.host_cache_size),
        "speculative_config": args.speculative_config is not None,
    }
    for name, is_asked in asked.items():
        if is_asked:
            raise ConfigError(
                f"{name}: the model is an encoder, which reads a prompt as a whole and keeps nothing; leave {name} out"
            )


def _processors(args: LlmArgs) -> tuple[Any, dict[str, Any]]:
    """Logits processors: the batched one, and those with names. Raises ``ConfigError``."""
    batched = args.batched_logits_processor
    if isinstance(batched, str):
        batched = import_processor("batched_logits_processor", batched)
    named = {name: import_processor(f"logits_processors.{name}", path) for name, path in args.logits_processors.items()}
    return batched, named


def _facts(model: Model) -> dict[str, Any]:
    expert_bytes, expert_share = model.expert_bytes()
    return {
        "weight_formats": model.weight_formats(),
        "expert_bytes": expert_bytes,
        "expert_share": expert_share,
        "vocab_size": model.vocab_size,
        "pooling": msgspec.json.decode(msgspec.json.encode(model.pooling)),
    }


def _adapted_model(
    source: ModelSource, ctx: BuildContext, algorithm: str | None, adapters: Adapters | NoAdapters
) -> Model:
    """The model that requests are for, without memory yet."""
    scheme = scheme_for(algorithm, source.checkpoint, ctx.ops.round_blocks)
    model = build_model(source.config, replace(ctx, scheme=scheme, adapters=adapters))
    adapters.check_targets()
    return model


def _adapters(args: LlmArgs, ops: Ops) -> Adapters | NoAdapters:
    lora = args.lora
    if lora is None:
        return NO_ADAPTERS
    return Adapters(
        ops.low_rank,
        lora.n_adapters,
        max(args.rows_of_step(whole_prompts=whole) for whole in (False, True)),
        max_rank=lora.max_lora_rank,
        targets=lora.lora_target_modules,
    )


def _operators(device: torch.device, dtype: torch.dtype, kv_dtype: torch.dtype, threads: int) -> Ops:
    if not core.is_available():
        log.warning("no native core (%s): torch's reference operators compute, which is slow", core.reason())
    core.set_threads(threads)
    forced = read_forced(os.environ.get(FORCE_VARIABLE, ""))
    ops = select_ops(device, dtype, forced, kv_dtype=kv_dtype)
    if core.is_available() and forced is None and ops.chosen["linear"] != "native":
        log.warning(
            "dtype %s: torch's reference operators compute, which is slow; the native core has float32 and bfloat16:"
            " set dtype to one of them",
            str(dtype).removeprefix("torch."),
        )
    # Two pools on the same CPUs stall each other: where the core computes the products, torch keeps to one thread.
    torch.set_num_threads(1 if ops.chosen["linear"] == "native" else threads)
    return ops


def _graph_sizes(args: LlmArgs, ops: Ops, most: int) -> tuple[int, ...]:
    """Rows of the steps that are recorded. None without native operators: an error if graphs were asked for."""
    if args.cuda_graph_config is None:
        return ()
    foreign = sorted(name for name, chosen in ops.chosen.items() if chosen != "native")
    if foreign and "cuda_graph_config" in args.model_fields_set:
        raise ConfigError(
            f"cuda_graph_config: a step is recorded from native operators only, and {', '.join(foreign)} are not;"
            " leave it out, or set it to None"
        )
    return () if foreign else args.cuda_graph_config.sizes(most)


def _graph_maker(
    args: LlmArgs, ops: Ops, groups: Sequence[CacheGroup], sizes: Sequence[int]
) -> Callable[[Model, Taps], Graphs]:
    """Makes the graphs of a model; none where there are no ``sizes``."""
    exact = args.cuda_graph_config is not None and not args.cuda_graph_config.enable_padding
    if not sizes:
        return lambda model, taps: NoGraphs()
    return lambda model, taps: StepGraphs(model, ops, groups, sizes, exact=exact, taps=taps)


def _acceptance(config: DecodingBaseConfig | None, vocab_size: int) -> Acceptance | None:
    """None: a draft is kept if it is what is drawn. Says aloud that anything else changes outputs."""
    if config is None or not config.changes_outputs:
        return None
    asked = [
        name for name in ("use_rejection_sampling", "use_relaxed_acceptance_for_thinking") if getattr(config, name)
    ]
    log.warning("%s: outputs are not those of a run without drafts (docs/speculation.md)", " and ".join(asked))
    relaxed = None
    if config.use_relaxed_acceptance_for_thinking:
        marks = (config.begin_thinking_phase_token, config.end_thinking_phase_token)
        if max(marks) >= vocab_size:
            raise ConfigError(
                f"begin_thinking_phase_token and end_thinking_phase_token are {marks[0]} and {marks[1]}; the model has"
                f" {vocab_size} tokens: name the ones that begin and end its thinking"
            )
        relaxed = Relaxed(config.relaxed_topk, config.relaxed_delta, *marks)
    return Acceptance(config.use_rejection_sampling, relaxed)


def _sampler(wanted: str, n_slots: int, vocab_size: int) -> tuple[str, Sampler]:
    """The sampler and its name among the values of ``sampler_type``."""
    if wanted == "TRTLLMSampler" and not core.is_available():
        raise ConfigError(
            f"sampler_type='TRTLLMSampler' is the native sampler, and {core.reason()};"
            " set sampler_type='auto' or 'TorchSampler', which gives the same tokens"
        )
    if wanted == "TorchSampler" or not core.is_available():
        return "TorchSampler", TorchSampler(n_slots, vocab_size)
    return "TRTLLMSampler", NativeSampler(n_slots, vocab_size)


def _bind(models: Sequence[Model], groups: Sequence[CacheGroup], views: Sequence[torch.Tensor]) -> None:
    """Gives every model its layers of the groups: those of the first come first in each."""
    first = 0
    for model in models:
        last = first + len(model.cache_specs())
        mine = [[layer - first for layer in group.layers if first <= layer < last] for group in groups]
        before = [sum(layer < first for layer in group.layers) for group in groups]
        model.bind_cache(
            mine, [view[:, skip : skip + len(own)] for view, skip, own in zip(views, before, mine, strict=True)]
        )
        first = last


def arena_views(layout: ArenaLayout, groups: Sequence[CacheGroup], kv_dtype: torch.dtype) -> list[torch.Tensor]:
    """The arena, once per group: [n_blocks, n_layers, numbers of a layer's block]. Pages are taken when written."""
    arena = huge_zeros(layout.nbytes)
    views = []
    for group, cut in zip(groups, layout.groups, strict=True):
        numbers, dtype = block_layout(group.spec, kv_dtype)
        shape = (layout.n_blocks(group.index), len(group.layers), numbers)
        views.append(arena.view(dtype).as_strided(shape, (cut.stride_bytes // dtype.itemsize, numbers, 1)))
    return views


def _slot_table(args: LlmArgs, groups: Sequence[CacheGroup], max_seq_len: int, max_drafts: int) -> SlotTable:
    media_groups = [group.index for group in groups if not group.spec.of_tokens]
    config = args.speculative_config
    n_lanes = args.most_trees * config.n_lanes if isinstance(config, EagleDecodingConfig) else 0
    return SlotTable(args.max_batch_size, max_seq_len, max_drafts, len(groups), BLOCK_TOKENS, media_groups, n_lanes)


def _media(model: Model, ops: Ops, groups: Sequence[CacheGroup], slots: SlotTable) -> Media:
    return CrossMedia(model, ops, groups, slots) if slots.media_groups else NO_MEDIA


def _states(model: Model, ops: Ops, groups: Sequence[CacheGroup], max_drafts: int) -> States:
    recurrent = [group.index for group in groups if isinstance(group.spec, RecurrentState)]
    return RecurrentStates(model, ops, recurrent) if recurrent and max_drafts else NoStates()


def _dtype(wanted: str, config: dict[str, Any]) -> torch.dtype:
    """``auto`` is what the configuration names. A GGUF file names none: float32 holds its block formats exactly."""
    if wanted != "auto":
        return _DTYPES[wanted]
    named = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    if named not in _DTYPES:
        raise ConfigError(f"the checkpoint's dtype is {named!r}; set dtype to one of {', '.join(_DTYPES)}")
    return _DTYPES[named]


def _max_seq_len(args: LlmArgs, model: Model) -> int:
    if args.max_seq_len is None:
        return model.max_positions
    if args.max_seq_len > model.max_positions:
        raise ConfigError(
            f"max_seq_len={args.max_seq_len} is beyond the {model.max_positions} positions the model was made for;"
            f" set max_seq_len to at most {model.max_positions}"
        )
    return args.max_seq_len


def _plan_memory(
    args: LlmArgs,
    weight_bytes: int,
    both: tuple[Sequence[CacheGroup], Sequence[CacheGroup]],
    max_seq_len: int,
    slot_bytes: int,
    adapter_bytes: int,
    spare: Sequence[int],
) -> tuple[ArenaLayout, ArenaLayout, TierSizes, MemoryPlan]:
    """``both``: the groups of the cache, and those of a cache of drafts, which has room for as many tokens. ``spare``:
    blocks of each group beside those of the cache."""
    available, cache = available_bytes(), args.kv_cache_config
    groups, draft_groups = both
    n_tokens = cache.max_tokens or args.max_batch_size * max_seq_len
    wanted, drafts = arena_for_tokens(groups, n_tokens), arena_for_tokens(draft_groups, n_tokens)
    draft_bytes = drafts.nbytes if draft_groups else 0
    n_bytes = wanted.nbytes + draft_bytes
    spare_bytes = with_spare(wanted, spare)[0].nbytes - wanted.nbytes
    tiers = TierSizes(
        tier_sectors(wanted, cache.host_cache_size or 0), tier_sectors(wanted, cache.disk_cache_size or 0)
    )
    host = tiers.host * wanted.sector_bytes
    if host and host + weight_bytes >= available:
        raise ConfigError(
            f"KvCacheConfig.host_cache_size={cache.host_cache_size} takes {host:,} bytes beside {weight_bytes:,} of"
            f" weights, and {available:,} are available; lower it"
        )
    budget = kv_budget(n_bytes, weight_bytes + adapter_bytes + spare_bytes, available - host)
    if not groups:
        return wanted, drafts, tiers, MemoryPlan(weight_bytes, 0, slot_bytes, available, 0, adapter_bytes)
    if cache.max_tokens is None:
        layout = plan_arena(groups, budget - budget * draft_bytes // n_bytes)
        if draft_groups:
            drafts = plan_arena(draft_groups, budget * draft_bytes // n_bytes)
            draft_bytes = drafts.nbytes
    elif n_bytes + spare_bytes + host + weight_bytes > available:
        raise ConfigError(
            f"KvCacheConfig.max_tokens={cache.max_tokens} takes {n_bytes:,} bytes beside {weight_bytes:,} of"
            f" weights and {host:,} of the host tier (host_cache_size), and {available:,} are available; lower it"
        )
    else:
        layout = wanted
    per_token = sum(group.block_bytes for group in groups if group.spec.of_tokens) / BLOCK_TOKENS
    kv_tokens = int((layout.n_sectors - 1) * layout.sector_bytes / per_token)
    kv_bytes = layout.nbytes + spare_bytes
    sizes = (weight_bytes, kv_bytes, slot_bytes, available, kv_tokens, adapter_bytes, host, draft_bytes)
    return layout, drafts, tiers, MemoryPlan(*sizes)


def _mover(
    args: LlmArgs,
    layout: ArenaLayout,
    tiers: TierSizes,
    groups: Sequence[CacheGroup],
    views: Sequence[torch.Tensor],
    kv_dtype: torch.dtype,
) -> BlockMover:
    """Lays out the tiers below the arena."""
    if not tiers.host:
        return BlockMover(views)
    host = arena_views(tier_layout(layout, tiers.host), groups, kv_dtype)
    folder = args.kv_cache_config.disk_cache_path
    if folder is None:
        return BlockMover(views, host)
    strides = [cut.stride_bytes for cut in layout.groups]
    file = BlockFile(Path(folder).expanduser(), strides, tier_layout(layout, tiers.disk).nbytes)
    return BlockMover(views, host, file)


def _dummy(config: dict[str, Any], model: Model, dtype: torch.dtype) -> Checkpoint:
    return DummyCheckpoint(
        config, model.tensor_shapes(), seed=_DUMMY_SEED, dtype=dtype, zero_centred=model.zero_centred()
    )


def _weight_cache(wanted: bool | BuildCacheConfig) -> WeightCache:
    if not wanted:
        return NoCache()
    config = wanted if isinstance(wanted, BuildCacheConfig) else BuildCacheConfig()
    root = config.cache_root or cache_folder() / "packed"
    return DiskCache(root, config.max_records, config.max_cache_storage_gb)


def _close(sources: Sequence[ModelSource]) -> None:
    """A checkpoint may have been read for more than one model: all are read before."""
    for source in sources:
        if source.checkpoint is not None:
            source.checkpoint.close()


def _load(model: Model, checkpoint: Checkpoint, threads: int, cache: WeightCache) -> None:
    """Reads all weights, with a bar when somebody is looking and it takes a while."""

    def load() -> None:
        with tqdm(
            total=model.n_bytes, desc="weights", unit="B", unit_scale=True, disable=None, delay=0.5, leave=False
        ) as bar:
            model.load(checkpoint, lambda done, total: bar.update(done - bar.n), threads)

    cache.fill(model, checkpoint, load, threads)
