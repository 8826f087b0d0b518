"""Whether a feature changes an output on this model and machine: every check is a run beside the plain run.

The plain run has everything turned off: one request at a time, its prompt in one piece, nothing cached or overlapped,
one thread. A check turns something on, sends the same requests, and compares tokens and the bits of logprobs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from headrace.core.config import CudaGraphConfig, KvCacheConfig
from headrace.core.features import feature
from headrace.core.sampling_params import SamplingParams
from headrace.core.speculative import NGramDecodingConfig

if TYPE_CHECKING:
    from headrace.engine.results import CompletionOutput, RequestOutput
    from headrace.llm import LLM

_NEVER = -1
"""No end token: every request runs to its last token."""
_LIMIT = 900.0
"""Seconds a run may take before it counts as stuck."""


@dataclass(frozen=True, slots=True)
class Check:
    """What is turned on, over the plain run."""

    name: str
    about: str
    args: Mapping[str, Any] = field(default_factory=dict)
    cache: Mapping[str, Any] = field(default_factory=dict)
    features: tuple[str, ...] = ()
    """Names of the capability table that must leave their mark, or the check has shown nothing."""
    strangers: int = 0
    """Requests beside those that are compared, cancelled when these have ended."""
    rounds: int = 1
    """How often the requests are sent; every round is compared."""


_BATCH = {"max_batch_size": 8}

CHECKS: tuple[Check, ...] = (
    Check("batch", "all requests at once", _BATCH, features=("batching",)),
    Check("strangers", "beside requests that are cancelled", _BATCH, features=("batching", "cancel"), strangers=2),
    Check(
        "chunks of 24",
        "prompts in pieces, decodes in between",
        {**_BATCH, "enable_chunked_prefill": True, "max_num_tokens": 24},
        features=("chunked_prefill",),
    ),
    Check(
        "chunks of 7",
        "pieces shorter than a block",
        {**_BATCH, "enable_chunked_prefill": True, "max_num_tokens": 7},
        features=("chunked_prefill",),
    ),
    Check("reuse", "full blocks from the cache", cache={"enable_block_reuse": True}, features=("kv_reuse",), rounds=2),
    Check(
        "partial reuse",
        "parts of blocks too",
        cache={"enable_block_reuse": True, "enable_partial_reuse": True},
        features=("kv_reuse", "partial_reuse"),
        rounds=2,
    ),
    Check("preemption", "a cache too small for all", _BATCH, {"max_tokens": 192}, features=("preemption",)),
    Check(
        "overlap", "the next step planned before this one ends", {"disable_overlap_scheduler": False}, {}, ("overlap",)
    ),
    Check("graph", "decode steps recorded and replayed", {"cuda_graph_config": CudaGraphConfig()}, {}, ("graph",)),
    Check(
        "n-gram drafts",
        "several tokens a step",
        {"speculative_config": NGramDecodingConfig(max_draft_len=4)},
        {},
        ("ngram",),
    ),
    Check("2 threads", "", {"num_threads": 2}),
    Check(
        "all of it",
        "everything above together",
        {
            **_BATCH,
            "enable_chunked_prefill": True,
            "max_num_tokens": 24,
            "disable_overlap_scheduler": False,
            "cuda_graph_config": CudaGraphConfig(),
            "speculative_config": NGramDecodingConfig(max_draft_len=4),
            "num_threads": 2,
        },
        {"max_tokens": 192, "enable_block_reuse": True, "enable_partial_reuse": True},
        ("batching", "chunked_prefill", "kv_reuse", "preemption", "graph", "ngram"),
        strangers=1,
        rounds=2,
    ),
)


@dataclass(frozen=True, slots=True)
class Work:
    """The requests of every run: half greedy, half at temperature 0.9, with logprobs."""

    prompts: list[list[int]]
    max_tokens: int

    @property
    def max_seq_len(self) -> int:
        """With room for a request that goes on longer than those that are compared."""
        return max(map(len, self.prompts)) + self.max_tokens + 64

    def sampling(self, index: int) -> SamplingParams:
        drawn = {"temperature": 0.9, "seed": 1000 + index} if index % 2 else {}
        return SamplingParams(max_tokens=self.max_tokens, end_id=_NEVER, logprobs=1, detokenize=False, **drawn)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found."""

    check: Check
    tokens_equal: bool
    worst_logprob: float
    """Largest difference of a logprob to the plain run; 0.0 means equal bits."""
    idle: tuple[str, ...] = ()
    """Features that left no mark."""
    where: str = ""
    """The first difference."""

    def holds(self, *, bits: bool) -> bool:
        """``bits``: logprobs must be equal to the bit, which native operators promise."""
        return self.tokens_equal and not self.idle and (self.worst_logprob == 0.0 or not bits)


def possible(checks: Sequence[Check], absent: Collection[str]) -> list[Check]:
    """The checks that can be made on a model on which the features ``absent`` cannot act."""
    kept = [check for check in checks if not set(check.features) & set(absent)]
    if "partial_reuse" not in absent:
        return kept
    return [replace(c, cache={name: v for name, v in c.cache.items() if name != "enable_partial_reuse"}) for c in kept]


def make_work(vocab_size: int, n_requests: int = 6, max_tokens: int = 24, seed: int = 7) -> Work:
    """Random prompts of 9 to 90 tokens; some share beginnings, some repeat themselves."""
    draw = random.Random(seed)
    stem = [draw.randrange(vocab_size) for _ in range(70)]
    prompts = []
    for index in range(n_requests):
        own = [draw.randrange(vocab_size) for _ in range(9 + 4 * index)]
        prompts.append(stem[: (0, 40, 70)[index % 3]] + (own[:5] * 4 if index % 3 == 0 else own))
    return Work(prompts, max_tokens)


def verify(
    start: Callable[..., LLM], checks: Sequence[Check], work: Work, on_finding: Callable[[Finding], None]
) -> tuple[list[Finding], bool]:
    """Runs the plain run and then every check.

    Args:
        start: called with keyword arguments of ``LLM``, the model and its dtype being settled.
        on_finding: called as soon as a check is done.

    Returns:
        The findings, and whether the engine promises bits: all its operators are native.
    """
    plain, _, config = _run(start, Check("plain", ""), work)
    findings = []
    for check in checks:
        rounds, witnesses, _ = _run(start, check, work)
        idle = tuple(name for name in check.features if not witnesses[feature(name).witness])
        found = _compare(check, plain[0], rounds, idle)
        on_finding(found)
        findings.append(found)
    return findings, promises_bits(config)


def promises_bits(effective_config: Mapping[str, Any]) -> bool:
    """The torch reference path promises tokens only: torch's own products change bits with the batch."""
    return set(effective_config["operators"].values()) == {"native"}


_Outputs = list["CompletionOutput"]


def _run(start: Callable[..., LLM], check: Check, work: Work) -> tuple[list[_Outputs], dict[str, int], dict[str, Any]]:
    """(outputs of every round, witnesses, effective configuration)."""
    args = {
        "max_batch_size": 1,
        "max_num_tokens": 512,
        "max_seq_len": work.max_seq_len,
        "enable_chunked_prefill": False,
        "disable_overlap_scheduler": True,
        "cuda_graph_config": None,
        "num_threads": 1,
        **check.args,
    }
    cache = {"max_tokens": 2048, "enable_block_reuse": False, "enable_partial_reuse": False, **check.cache}
    with start(kv_cache_config=KvCacheConfig(**cache), **args) as llm:
        strangers = [_stranger(llm, work, index) for index in range(check.strangers)]
        rounds = []
        for _ in range(check.rounds):
            requests = [llm.generate_async(prompt, work.sampling(i)) for i, prompt in enumerate(work.prompts)]
            rounds.append([request.result(timeout=_LIMIT).outputs[0] for request in requests])
        for stranger in strangers:
            stranger.abort()
            stranger.result(timeout=_LIMIT)
        witnesses = llm.get_stats()[-1]["witnesses"]
        llm.check_integrity()
        return rounds, witnesses, llm.effective_config


def _stranger(llm: LLM, work: Work, index: int) -> RequestOutput:
    """A request that is computing when this returns, and would go on longer than those that are compared."""
    prompt = work.prompts[-1][: 8 + index]
    forever = SamplingParams(max_tokens=work.max_seq_len - len(prompt), end_id=_NEVER)
    stranger = llm.generate_async(prompt, forever, streaming=True, priority=1.0)
    next(iter(stranger))
    return stranger


def _compare(check: Check, plain: _Outputs, rounds: list[_Outputs], idle: tuple[str, ...]) -> Finding:
    worst, where, tokens_equal = 0.0, "", True
    for turn, outputs in enumerate(rounds):
        for index, (ours, theirs) in enumerate(zip(outputs, plain, strict=True)):
            if ours.token_ids != theirs.token_ids:
                first = next(
                    i for i, (a, b) in enumerate(zip(ours.token_ids, theirs.token_ids, strict=False)) if a != b
                )
                where = where or f"round {turn}, request {index}, token {first}"
                tokens_equal = False
                continue
            for place, (mine, expected) in enumerate(zip(ours.logprobs, theirs.logprobs, strict=True)):
                token = ours.token_ids[place]
                difference = abs(mine[token].logprob - expected[token].logprob)
                where = where or (f"round {turn}, request {index}, logprob {place}" if difference else "")
                worst = max(worst, difference)
    return Finding(check, tokens_equal, worst, idle, where)
