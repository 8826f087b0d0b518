"""What turns each feature of the capability table on, and runs with any set of them on.

``plain`` is the run that everything must equal: one request at a time, nothing cached, nothing overlapped, one piece.
"""

from __future__ import annotations

import atexit
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from headrace import (
    LLM,
    CudaGraphConfig,
    DraftTargetDecodingConfig,
    EagleDecodingConfig,
    GuidedDecodingParams,
    KvCacheConfig,
    KvCacheRetentionConfig,
    LoraConfig,
    LoRARequest,
    MTPDecodingConfig,
    NGramDecodingConfig,
    PoolingParams,
    RequestOutput,
    SADecodingConfig,
    SamplingParams,
    SaveHiddenStatesDecodingConfig,
    TokenRangeRetentionConfig,
    UserProvidedDecodingConfig,
)
from parity.mllama import picture
from tiny_adapters import linear_maps, write_adapter

DRAFT_MODEL = "draft"
"""Folder in a model's own folder: a model with the same vocabulary that often draws the same tokens."""
DRAFT_HEAD = "head"
"""Likewise: a head that reads its hidden states."""
MTP_LAYER = "mtp"
"""Likewise; where there is none, the model's own checkpoint carries the layer."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a run has to do: requests, some or all of which are sampled at temperature 0.9; the others are greedy."""

    prompts: list[list[int]]
    """Token ids; they share beginnings, and some repeat themselves."""
    max_tokens: int
    ends: dict[str, Any] = field(default_factory=dict)
    """Sampling options that say what ends an output."""
    cache_tokens: int = 4096
    tight_cache_tokens: int = 256
    """So few that sequences are preempted."""
    pictures: dict[int, list[Any]] = field(default_factory=dict)
    """By request, the pictures that its prompt has places for."""
    drawn: Literal["half", "none", "all"] = "half"
    """How many of the requests are sampled."""

    def is_drawn(self, index: int) -> bool:
        """Whether a request is sampled."""
        return self.drawn == "all" or (self.drawn == "half" and index % 2 == 1)

    def given(self, index: int) -> Any:
        """The prompt of a request, as it is handed in."""
        prompt, pictures = self.prompts[index], self.pictures.get(index)
        if not pictures:
            return prompt
        return {"prompt_token_ids": prompt, "multi_modal_data": {"image": pictures}}


@dataclass(slots=True)
class Scenario:
    """Arguments of the engine, options of the requests, and who else is about."""

    args: dict[str, Any] = field(default_factory=dict)
    cache: dict[str, Any] = field(default_factory=dict)
    shaping: dict[str, Any] = field(default_factory=dict)
    """Sampling options that change the output: the plain run has them as well."""
    watching: dict[str, Any] = field(default_factory=dict)
    """Sampling options that must not change it."""
    watches_prompt: bool = False
    """Every other pair of requests asks for prompt logprobs: those recompute what the others take from the cache."""
    watches_context: bool = False
    """The same of the logits of prompts."""
    n: int = 1
    """Outputs of the requests that are not greedy."""
    strangers: bool = False
    """Requests that are cancelled while they run, and while they wait."""
    priorities: bool = False
    beams: bool = False
    """Requests that draw nothing look for the likeliest outputs, by three beams."""
    best_of: int | None = None
    """Of the requests that draw."""
    one_by_one: bool = False
    """A request is sent when the one before it has ended."""
    encodes: bool = False
    """Every prompt is encoded as well, beside its own continuation."""
    adapters: bool = False
    """Requests that share as much of their beginnings have the same of two adapters, or none; the plain run as well."""
    returns: int = 0
    """The beginning that prompts share has been there before, and so many others have taken its place in the cache."""
    retains: bool = False
    """Of three requests, one wants to be kept, one not to be, and one says nothing."""
    tight: bool = False
    """Too little cache for all."""
    drafts_by: str = ""
    """draft_model, eagle3, eagle3_two_model, draft_tree, mtp or user_drafter: what drafts is only known when the model
    and the plain run are."""


def plain() -> Scenario:
    return Scenario(
        args={
            "max_batch_size": 1,
            "max_num_tokens": 512,
            "enable_chunked_prefill": False,
            "disable_overlap_scheduler": True,
            "cuda_graph_config": None,
        },
        cache={"enable_block_reuse": False, "enable_partial_reuse": False},
    )


def _batching(s: Scenario) -> None:
    s.args["max_batch_size"] = 8


def _chunks(s: Scenario) -> None:
    s.args |= {"enable_chunked_prefill": True, "max_num_tokens": 24}


def _reuse(s: Scenario) -> None:
    s.cache["enable_block_reuse"] = True


def _partial(s: Scenario) -> None:
    s.cache |= {"enable_block_reuse": True, "enable_partial_reuse": True}


def _retention(s: Scenario) -> None:
    s.cache["enable_block_reuse"] = True
    s.retains = True


def _host_cache(s: Scenario) -> None:
    s.cache |= {"enable_block_reuse": True, "host_cache_size": s.cache.get("host_cache_size", 1 << 28)}
    s.tight, s.returns = True, max(s.returns, 3)


def _disk_cache(s: Scenario) -> None:
    """The host tier has as little room as can be, so that most goes on to the disk."""
    s.cache |= {"enable_block_reuse": True, "host_cache_size": 1}
    s.cache |= {"disk_cache_size": 1 << 28, "disk_cache_path": tempfile.gettempdir()}
    s.tight, s.returns = True, 8


def _windows(s: Scenario) -> None:
    """Narrower than what any family has of its own."""
    s.cache["max_attention_window"] = [36]


def _preemption(s: Scenario) -> None:
    s.args["max_batch_size"] = 8
    s.tight = True


def _overlap(s: Scenario) -> None:
    s.args["disable_overlap_scheduler"] = False


def _graph(s: Scenario) -> None:
    s.args["cuda_graph_config"] = CudaGraphConfig()


def _ngram(s: Scenario) -> None:
    s.args["speculative_config"] = NGramDecodingConfig(max_draft_len=3)


def _suffix(s: Scenario) -> None:
    s.args["speculative_config"] = SADecodingConfig(max_draft_len=3, min_matching_length=1)


def _draft_model(s: Scenario) -> None:
    s.drafts_by = "draft_model"


def _eagle3(s: Scenario) -> None:
    s.drafts_by = "eagle3"


def _draft_tree(s: Scenario) -> None:
    s.drafts_by = "draft_tree"


def _eagle3_two_model(s: Scenario) -> None:
    s.drafts_by = "eagle3_two_model"


def _save_states(s: Scenario) -> None:
    folder = tempfile.mkdtemp(prefix="states-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    s.args["speculative_config"] = SaveHiddenStatesDecodingConfig(
        output_directory=folder, eagle3_layers_to_capture=(0, 1)
    )


def _mtp(s: Scenario) -> None:
    s.drafts_by = "mtp"


def _user_drafter(s: Scenario) -> None:
    s.drafts_by = "user_drafter"


def _n(s: Scenario) -> None:
    s.n = 2


def _best_of(s: Scenario) -> None:
    s.best_of = 3


def _beam_search(s: Scenario) -> None:
    s.beams = True
    s.args["max_batch_size"] = max(4, s.args.get("max_batch_size", 1))


def _cancel(s: Scenario) -> None:
    s.strangers = True


def _priority(s: Scenario) -> None:
    s.priorities = True


def _logprobs(s: Scenario) -> None:
    s.watching["logprobs"] = 2


def _prompt_logprobs(s: Scenario) -> None:
    s.watches_prompt = True


def _logits(s: Scenario) -> None:
    s.watching["return_generation_logits"] = True
    s.watches_context = True


def _penalties(s: Scenario) -> None:
    s.shaping |= {
        "repetition_penalty": 1.3,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.2,
        "embedding_bias": {5: 2.0, 9: -1.0},
        "bad_token_ids": [17, (40, 41)],
        "min_tokens": 6,
        "no_repeat_ngram_size": 3,
        "top_p_decay": 0.98,
        "top_p_min": 0.7,
    }


class _Nudge:
    """Adds what follows from the tokens so far, as a processor should."""

    def __call__(self, req_id: int, logits: Any, token_ids: list[list[int]], stream_ptr: None, client_id: int) -> None:
        (tokens,) = token_ids
        assert (*logits.shape[:2], stream_ptr) == (1, 1, None)
        assert client_id > 0
        logits[0, 0, (tokens[-1] * 7 + len(tokens)) % 300] += 1.5
        logits[0, 0, tokens[len(tokens) // 2] % logits.shape[-1]] -= 3.0


class _NudgeAll:
    def __call__(
        self, req_ids: list[int], logits: list, token_ids: list, stream_ptr: None, client_ids: list[int]
    ) -> None:
        for row in zip(req_ids, logits, token_ids, client_ids, strict=True):
            _Nudge()(row[0], row[1], row[2], stream_ptr, row[3])


def _logits_processor(s: Scenario) -> None:
    s.args["batched_logits_processor"] = _NudgeAll()
    s.shaping |= {"logits_processor": _Nudge(), "apply_batched_logits_processor": True}


def _guided(s: Scenario) -> None:
    s.shaping["guided_decoding"] = GuidedDecodingParams(regex="([a-d][0-9w]|x[yz]{1,3}){3,60}")


def _lora(s: Scenario) -> None:
    s.args["lora_config"] = LoraConfig(max_loras=2, max_lora_rank=8)
    s.adapters = True


def _stop_strings(s: Scenario) -> None:
    s.shaping["stop"] = list("aeiouxyz")


def _encode(s: Scenario) -> None:
    s.encodes = True


TURN_ON: dict[str, Callable[[Scenario], None]] = {
    "batching": _batching,
    "chunked_prefill": _chunks,
    "kv_reuse": _reuse,
    "partial_reuse": _partial,
    "retention": _retention,
    "host_cache": _host_cache,
    "disk_cache": _disk_cache,
    "windows": _windows,
    "preemption": _preemption,
    "overlap": _overlap,
    "graph": _graph,
    "ngram": _ngram,
    "suffix": _suffix,
    "draft_model": _draft_model,
    "eagle3": _eagle3,
    "eagle3_two_model": _eagle3_two_model,
    "draft_tree": _draft_tree,
    "mtp": _mtp,
    "user_drafter": _user_drafter,
    "save_states": _save_states,
    "n": _n,
    "best_of": _best_of,
    "beam_search": _beam_search,
    "cancel": _cancel,
    "priority": _priority,
    "logprobs": _logprobs,
    "prompt_logprobs": _prompt_logprobs,
    "logits": _logits,
    "penalties": _penalties,
    "logits_processor": _logits_processor,
    "guided": _guided,
    "stop_strings": _stop_strings,
    "lora": _lora,
    "encode": _encode,
}
"""By the names of ``core.features.FEATURES``."""


def changes_output(name: str) -> bool:
    """Whether the plain run must have the feature's options as well."""
    scenario = Scenario()
    TURN_ON[name](scenario)
    windows = scenario.cache.get("max_attention_window")
    return bool(scenario.shaping or scenario.beams or scenario.best_of or scenario.adapters or windows)


def with_features(names: Iterable[str]) -> Scenario:
    scenario = plain()
    on = set(names)
    for name in on:
        TURN_ON[name](scenario)
    if "overlap" in on and on & {"ngram", "suffix", "user_drafter"}:
        # Every sequence waits for its own tokens; a step overlaps another only where rows have to take turns.
        scenario.args |= {"max_batch_size": 8, "enable_chunked_prefill": True, "max_num_tokens": 12}
    if {"preemption", "chunked_prefill"} <= on:
        # Enough rows for several to have begun before the first is done: only then memory runs short.
        scenario.args["max_num_tokens"] = 40
    return scenario


def tiny_work(seed: int = 3) -> Work:
    """Prompts that share beginnings of every length, some of them full of repetitions. All tiny models have the ids."""
    rng = random.Random(seed)
    stem = [rng.randrange(3, 300) for _ in range(100)]
    prompts = []
    for i in range(12):
        shared = stem[: (0, 20, 40, 71)[i % 4]]
        own = [rng.randrange(3, 300) for _ in range(rng.randrange(1, 30))]
        if i % 3 == 0:
            own = own[:4] * 6
        prompts.append(shared + own)
    return Work(prompts, max_tokens=20, ends={"end_id": 2})


def with_pictures(work: Work, placeholder: int) -> Work:
    """Half of the prompts get a picture or two, some of them after what they share, and from few pictures."""
    prompts, pictures = list(work.prompts), {}
    few = [picture(seed, *size) for seed, size in enumerate(((28, 28), (20, 61), (130, 40)))]
    for index in range(0, len(prompts), 2):
        prompt, place = prompts[index], (0, 25, 5)[index % 3]
        prompts[index] = [*prompt[:place], placeholder, *prompt[place:]]
        pictures[index] = [few[index // 2 % 2]]
        if index % 8 == 4:
            prompts[index].append(placeholder)
            pictures[index].append(few[2])
    return replace(work, prompts=prompts, pictures=pictures)


def reference(names: Iterable[str]) -> Scenario:
    """The plain run that features are compared with: with the options that change the output, and with n, logprobs and
    encoded prompts so that everything is there."""
    scenario = with_features(name for name in names if changes_output(name))
    scenario.n = 2
    scenario.one_by_one = True
    scenario.encodes = True
    scenario.watching = {"logprobs": 2, "prompt_logprobs": 1}
    scenario.watching |= {"return_context_logits": True, "return_generation_logits": True}
    return scenario


@dataclass(frozen=True, slots=True)
class Finished:
    """What a run gave: by request and output."""

    outputs: list[list[Any]]
    context: list[np.ndarray | None]
    """By request: the prompt's logits, if they were asked for."""
    witnesses: dict[str, int]
    encoded: list[np.ndarray]
    """By request, if prompts were encoded."""
    is_exact: bool
    """The operators promise bits, not only tokens."""


def run(model: Path | str, scenario: Scenario, work: Work, plain: Finished | None = None) -> Finished:
    """All requests through one engine. ``plain``: where it is known, what should come out."""
    tokens = work.tight_cache_tokens if scenario.tight else work.cache_tokens
    cache = KvCacheConfig(max_tokens=tokens, **scenario.cache)
    args = {"dtype": "float32"} | scenario.args | _drafting(scenario, model, work, plain)
    adapters = adapters_of(model) if scenario.adapters else (None,)
    with LLM(model, num_threads=1, kv_cache_config=cache, **args) as llm:
        if scenario.returns:
            fill_tiers(llm, work, scenario.returns, lambda prompt: llm.generate(prompt, SamplingParams(max_tokens=1)))
        strangers = _start_strangers(llm, work) if scenario.strangers else []
        requests = []
        for index in range(len(work.prompts)):
            priority = (index % 5) / 4 if scenario.priorities else 0.5
            options = _sampling(scenario, work, index)
            adapter = adapters[index % 4 % len(adapters)]
            kept = _KEPT[index % 3] if scenario.retains else None
            requests.append(
                llm.generate_async(
                    work.given(index), options, adapter, priority=priority, kv_cache_retention_config=kept
                )
            )
            if scenario.one_by_one:
                requests[-1].result(timeout=120)
        encoding = [
            llm.encode_async(
                work.given(index),
                PoolingParams(pooling_type=_POOLING[index // 3 % len(_POOLING)]),
                adapters[index % 4 % len(adapters)],
            )
            for index in range(len(work.prompts) if scenario.encodes else 0)
        ]
        for stranger in strangers:
            stranger.abort()
        outputs = [request.result(timeout=120).outputs for request in requests]
        context = [request.context_logits for request in requests]
        encoded = [one.result(timeout=120).data for one in encoding]
        assert all(stranger.result(timeout=60).outputs[0].finish_reason == "cancelled" for stranger in strangers)
        witnesses = llm.get_stats()[-1]["witnesses"]
        llm.check_integrity()
        is_exact = set(llm.effective_config["operators"].values()) == {"native"}
    return Finished(outputs, context, witnesses, encoded, is_exact)


@cache
def adapters_of(model: Path | str) -> tuple[LoRARequest | None, ...]:
    """For requests one after another."""
    folder = Path(tempfile.mkdtemp(prefix="adapters-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    maps = linear_maps(model)
    some = {name: maps[name] for name in list(maps)[::2]}
    every = write_adapter(folder / "every", maps, seed=1, rank=4)
    part = write_adapter(folder / "part", some, seed=2, rank=7, use_rslora=True)
    return None, LoRARequest("every", 1, str(every)), LoRARequest("part", 2, str(part))


_KEPT = (
    KvCacheRetentionConfig(token_range_retention_configs=[TokenRangeRetentionConfig(0, 40, 80, 50.0)]),
    KvCacheRetentionConfig(
        token_range_retention_configs=[TokenRangeRetentionConfig(0, None, 0)], decode_retention_priority=0
    ),
    None,
)
_POOLING = ("last", "mean", "all")
_ABOUT_DRAWING = ("top_p_decay", "top_p_min")
"""What does not go with beams: the other half of the requests has it."""


def _drafting(scenario: Scenario, model: Path | str, work: Work, plain: Finished | None) -> dict[str, Any]:
    if scenario.drafts_by == "draft_model":
        # A built-in model drafts for itself.
        folder = model / DRAFT_MODEL if isinstance(model, Path) else model
        config = DraftTargetDecodingConfig(max_draft_len=3, speculative_model=str(folder))
        return {"speculative_config": config}
    if scenario.drafts_by in ("eagle3", "eagle3_two_model", "draft_tree"):
        # The head of the built-in model has a name.
        head = model / DRAFT_HEAD if isinstance(model, Path) else f"{model}-eagle3"
        more: dict[str, Any] = {
            "eagle3": {},
            "eagle3_two_model": {"eagle3_one_model": False},
            "draft_tree": {"use_dynamic_tree": True, "dynamic_tree_max_topK": 3, "max_total_draft_tokens": 7},
        }[scenario.drafts_by]
        return {"speculative_config": EagleDecodingConfig(max_draft_len=3, speculative_model=str(head), **more)}
    if scenario.drafts_by == "mtp":
        layer = Path(model) / MTP_LAYER
        config = MTPDecodingConfig(max_draft_len=3, speculative_model=str(layer) if layer.exists() else None)
        return {"speculative_config": config}
    if scenario.drafts_by == "user_drafter":
        assert plain is not None, "the user's drafter repeats the plain run"
        return {"speculative_config": UserProvidedDecodingConfig(max_draft_len=3, drafter=_Replay(work, plain))}
    return {}


class _Replay:
    """Drafts what the plain run gave, with a wrong token now and then."""

    def __init__(self, work: Work, plain: Finished) -> None:
        pairs = zip(work.prompts, plain.outputs, strict=True)
        self._texts = [prompt + list(one.token_ids) for prompt, outputs in pairs for one in outputs]

    def __call__(self, tokens: list[int], limit: int) -> list[int]:
        text = next((text for text in self._texts if text[: len(tokens)] == tokens), [])
        drafts = text[len(tokens) : len(tokens) + limit]
        if drafts and sum(tokens) % 3 == 0:
            place = sum(tokens) // 3 % len(drafts)
            drafts[place] = 5 if drafts[place] == 4 else 4
        return drafts


def _sampling(scenario: Scenario, work: Work, index: int) -> SamplingParams:
    options = {"max_tokens": work.max_tokens, **work.ends, **scenario.shaping, **scenario.watching}
    if scenario.watches_prompt and index % 4 < 2:
        options["prompt_logprobs"] = 1
    if scenario.watches_context and index % 4 < 2:
        options["return_context_logits"] = True
    if work.is_drawn(index):
        options |= {"temperature": 0.9, "seed": 1000 + index, "n": scenario.n, "best_of": scenario.best_of}
    elif scenario.beams:
        options = {name: value for name, value in options.items() if name not in _ABOUT_DRAWING}
        options |= {"use_beam_search": True, "best_of": 3, "n": 2, "length_penalty": 0.5}
        options |= {"early_stopping": index % 3, "beam_search_diversity_rate": 0.3 if index % 4 else None}
    return SamplingParams(**options)


def fill_tiers(llm: LLM, work: Work, n_others: int, read: Callable[[list[int]], Any]) -> None:
    """Two blocks that long prompts begin with, and then others until those have had to make room. ``read``: what has
    the engine read a prompt."""
    rng = random.Random(7)
    for prompt in {tuple(prompt[:65]): None for prompt in work.prompts if len(prompt) > 65}:
        read(list(prompt))
    for n_done in range(60):
        if n_done >= n_others and llm.get_stats()[-1]["witnesses"]["blocks_spilled"] >= 5 * (n_others - 3):
            return
        read([rng.randrange(3, 300) for _ in range(work.tight_cache_tokens - 40)])
    raise AssertionError("what was to make room is still in the host tier")


def _start_strangers(llm: LLM, work: Work) -> list[RequestOutput]:
    """More of them than may run at once; the first has begun when this returns."""
    rng = random.Random(99)
    forever = SamplingParams(max_tokens=work.tight_cache_tokens - 40, end_id=-1)
    strangers = [
        llm.generate_async([rng.randrange(3, 300) for _ in range(40)], forever, streaming=True, priority=1.0)
        for _ in range(3)
    ]
    next(iter(strangers[0]))
    return strangers
