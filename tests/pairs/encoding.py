"""Features on models that only encode: each alone, on every such architecture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headrace import LLM, KvCacheConfig, PoolingParams
from headrace.core.features import absent_without
from headrace.eval.tiny_variants import LABELLED

from .cases import NAMES, TURN, Case
from .scenarios import Scenario, adapters_of, fill_tiers, tiny_work, with_features

LACKING: dict[str, tuple[str, ...]] = {
    "bert": ("output", "prefix", "past"),
    "qwen2-process-reward": ("output", "prefix"),
}
"""What a family has not, where it is more than outputs: keys of ``features.LACKS``."""
ENCODERS = tuple(family for family in LACKING if "past" in LACKING[family])
CHANGES = {"mistral-labels": {"sliding_window": 40}}
"""Of configurations: with a window in all layers that is shorter than a block, too little is kept to fill a tier."""
STEP = 7
"""The token that ends a step, for a model that rates steps."""


def lacking(family: str) -> tuple[str, ...]:
    """Keys of ``features.LACKS``."""
    return LACKING.get(family, ("output",))


def names_on(family: str) -> tuple[str, ...]:
    """Features that can act on a family."""
    absent = absent_without(*lacking(family))
    return tuple(name for name in NAMES if name not in absent)


def cases(turn: int = TURN) -> list[Case]:
    """Every feature on every family, a third of them slow, another third every day."""
    return [
        Case((name,), family, "slow" if (index - place - turn) % 3 == 0 else "full")
        for index, family in enumerate(LABELLED)
        for place, name in enumerate(names_on(family))
    ]


def plain(family: str, shaped_by: str | None) -> Scenario:
    """One prompt at a time, in one piece, and nothing kept but what a feature needs that changes what comes out."""
    scenario = with_features((shaped_by,) if shaped_by else ())
    if family in ENCODERS:
        del scenario.args["enable_chunked_prefill"]
    return scenario


def built(family: str, name: str) -> Scenario:
    """A feature turned on."""
    scenario = plain(family, name)
    if name == "overlap":
        # Prompts of one step each: the next ones overlap them.
        scenario.args |= {"max_batch_size": 4, "max_num_tokens": 128}
    if name == "windows":
        # What is out of the window is given back between the pieces of a prompt.
        scenario.args |= {"enable_chunked_prefill": True, "max_num_tokens": 24}
    return scenario


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a run gave: for each prompt what is pooled of it, and all its rows."""

    rows: list[np.ndarray]
    witnesses: dict[str, int]
    is_exact: bool


def run(model: Path, family: str, scenario: Scenario) -> Encoded:
    """All prompts through one engine."""
    work, settings = tiny_work(), dict(scenario.args)
    if family not in ENCODERS:
        tokens = work.tight_cache_tokens if scenario.tight else work.cache_tokens
        settings["kv_cache_config"] = KvCacheConfig(max_tokens=tokens, **scenario.cache)
    adapters = adapters_of(model) if scenario.adapters else (None,)
    own = PoolingParams(step_tag_id=STEP) if "process" in family else PoolingParams()
    every = own if family in ENCODERS else PoolingParams(pooling_type="all")
    with LLM(model, dtype="float32", num_threads=1, skip_tokenizer_init=True, **settings) as llm:
        if scenario.returns:
            fill_tiers(llm, work, scenario.returns, lambda prompt: llm.encode(prompt, every))
        started = []
        for index, prompt in enumerate(work.prompts):
            priority = (index % 5) / 4 if scenario.priorities else 0.5
            for params in (own, every):
                one = llm.encode_async([*prompt, STEP], params, adapters[index % 4 % len(adapters)], priority=priority)
                started.append(one)
        if scenario.strangers:  # behind all others, so that it waits when it is cancelled
            llm.encode_async([9] * 100, every, priority=0.0).abort()
        rows = [one.result(timeout=120).data for one in started]
        witnesses = llm.get_stats()[-1]["witnesses"]
        llm.check_integrity()
        is_exact = set(llm.effective_config["operators"].values()) == {"native"}
    return Encoded(rows, witnesses, is_exact)
