"""Guided decoding through the engine: a dozen at once, errors, cancels, limits, and what the front refuses."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from draft_heads import write_head
from headrace import (
    LLM,
    CompletionOutput,
    ConfigError,
    DraftTargetDecodingConfig,
    EagleDecodingConfig,
    GuidedDecodingParams,
    KvCacheConfig,
    NGramDecodingConfig,
    RequestError,
    SADecodingConfig,
    SamplingParams,
    UserProvidedDecodingConfig,
)
from headrace.core.request import Request
from headrace.core.speculative import DecodingBaseConfig
from headrace.engine import grammars
from headrace.eval import tiny
from headrace.tokenizer.load import load_tokenizer
from tiny_text import write_tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["cat", "dog", "fish"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 40},
        "name": {"type": "string", "pattern": "^[A-Z][a-z]{1,6}$"},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["kind", "age", "name", "tags"],
    "additionalProperties": False,
}
THINK, THOUGHT = 315, 316
"""The last tokens of the vocabulary."""
REGEX = r"[0-9]{2}:[0-9]{2}( (am|pm))?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.no_grad():
        model = tiny.make("llama")
    folder = tmp_path_factory.mktemp("guided")
    tiny.save(model, folder)
    assert model.config.vocab_size == THOUGHT + 1
    write_tokenizer(folder, THINK, beyond=("<think>", "</think>"))
    write_head(folder / "head", folder)
    return folder


def make(folder: Path, **options: Any) -> LLM:
    cache = KvCacheConfig(max_tokens=4096)
    return LLM(folder, dtype="float32", num_threads=1, kv_cache_config=cache, **options)


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with make(folder) as llm:
        yield llm
        llm.check_integrity()


def guided(max_tokens: int = 160, **fields: Any) -> SamplingParams:
    options = {
        name: fields.pop(name) for name in ("temperature", "seed", "n", "end_id", "ignore_eos") if name in fields
    }
    return SamplingParams(max_tokens=max_tokens, guided_decoding=GuidedDecodingParams(**fields), **options)


def dozen() -> list[tuple[str, SamplingParams]]:
    """Greedy and sampled; with a temperature so high that every token which may come does. A third of the prompts have
    closed the thinking part, a third have opened it, and a third leave it to the model. They end in the schema's own
    words, so that drafts come, and are refused by the grammar or kept."""
    kinds: list[dict[str, Any]] = [{"json": SCHEMA}, {"regex": REGEX}, {"choice": ["alpha", "beta", "al"]}]
    words = ' {"kind": "cat", "age": 12, "name": "Tom", "tags": [true, false]} 12:30 pm alpha beta'
    asked = []
    for i in range(12):
        temperature = (0.0, 0.9, 20.0, 1.0)[i // 3]
        mark = ("<think>\n", "</think>\n\n", "")[(i + i // 3) % 3]
        # Random weights want no mark more than another token; greedily it comes at once, or never.
        wanted = 1e3 if temperature == 0.0 else 4.0 * temperature
        one = guided(**kinds[i % 3], temperature=temperature, seed=i)
        one = one.model_copy(update={"embedding_bias": {THINK: wanted / 2, THOUGHT: wanted}})
        asked.append((f"{i}{words}{mark}", one))
    return asked


def check(i: int, text: str) -> bool:
    """True if it has thought."""
    thought, mark, text = text.rpartition("</think>")
    opened = (i + i // 3) % 3 == 0
    assert bool(mark) == (opened or thought.startswith("<think>"))
    if i % 3 == 0:
        jsonschema.validate(json.loads(text), SCHEMA)
    elif i % 3 == 1:
        assert re.fullmatch(REGEX, text)
    else:
        assert text in ("alpha", "beta", "al")
    return bool(mark)


def run_dozen(folder: Path, **options: Any) -> tuple[list[CompletionOutput], dict[str, int]]:
    with make(folder, reasoning_parser="qwen3", **options) as llm:
        requests = [llm.generate_async(*one) for one in dozen()]
        outputs = [request.result(timeout=240).outputs[0] for request in requests]
        witnesses = llm.get_stats()[-1]["witnesses"]
        llm.check_integrity()
    assert [output.finish_reason for output in outputs] == ["stop"] * 12
    thought = [check(i, output.text) for i, output in enumerate(outputs)]
    assert 4 < sum(thought) < 12
    assert witnesses["masked_rows"] > 0
    return outputs, witnesses


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[CompletionOutput]:
    plain = {"max_batch_size": 1, "disable_overlap_scheduler": True, "cuda_graph_config": None}
    return run_dozen(folder, **plain)[0]


class _Replay:
    """Drafts what came in the plain run, with a wrong token now and then."""

    def __init__(self, folder: Path, outputs: list[CompletionOutput]) -> None:
        encode = load_tokenizer(folder).encode
        self._texts = [encode(text) + list(one.token_ids) for (text, _), one in zip(dozen(), outputs, strict=True)]

    def __call__(self, tokens: list[int], limit: int) -> list[int]:
        text = next((text for text in self._texts if text[: len(tokens)] == tokens), [])
        drafts = text[len(tokens) : len(tokens) + limit]
        if drafts and len(tokens) % 3 == 0:
            drafts[-1] = 4 if drafts[-1] == 5 else 5
        return drafts


def drafting(kind: str, folder: Path, alone: list[CompletionOutput]) -> DecodingBaseConfig:
    return {
        "ngram": lambda: NGramDecodingConfig(max_draft_len=4),
        "suffix": lambda: SADecodingConfig(max_draft_len=4, min_matching_length=1),
        "draft_model": lambda: DraftTargetDecodingConfig(max_draft_len=3, speculative_model=str(folder)),
        "eagle3": lambda: EagleDecodingConfig(max_draft_len=3, speculative_model=str(folder / "head")),
        "user_drafter": lambda: UserProvidedDecodingConfig(max_draft_len=4, drafter=_Replay(folder, alone)),
    }[kind]()


@pytest.mark.parametrize("kind", ["ngram", "suffix", "draft_model", "eagle3", "user_drafter"])
def test_a_dozen_at_once_under_speculation_are_all_valid(
    kind: str, folder: Path, alone: list[CompletionOutput]
) -> None:
    outputs, witnesses = run_dozen(folder, max_batch_size=12, speculative_config=drafting(kind, folder, alone))
    assert [(one.token_ids, one.text) for one in outputs] == [(one.token_ids, one.text) for one in alone]
    assert 0 < witnesses["drafts_accepted"] < witnesses["drafts_proposed"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"reasoning_parser": "magistral"}, r"\[/THINK\]"),
        ({"reasoning_parser": "auto"}, "chat template"),
        ({"reasoning_parser": "qwen3", "skip_tokenizer_init": True}, "tokenizer"),
        ({"reasoning_parser": "qwen"}, "deepseek-r1"),
    ],
)
def test_a_parser_that_does_not_fit_the_model(folder: Path, options: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        make(folder, **options)


def test_a_bad_grammar_fails_its_own_request(llm: LLM) -> None:
    bad = [{"regex": "[0-"}, {"json": {"not": {}}}, {"grammar": "start: ("}, {"structural_tag": {"type": "x"}}]
    requests = [llm.generate_async("a", guided(**fields)) for fields in bad]
    fine = llm.generate_async("a", guided(regex="[a-c]{3}"))
    for request, fields in zip(requests, bad, strict=True):
        with pytest.raises(RequestError, match=next(iter(fields))) as caught:
            request.result(timeout=60)
        assert caught.value.param == next(iter(fields))
    assert re.fullmatch("[a-c]{3}", fine.result(timeout=60).outputs[0].text)


def test_every_one_of_n_has_its_own_place(llm: LLM) -> None:
    outputs = llm.generate("a", guided(regex="[a-z]{5,9}", temperature=1.0, seed=3, n=6)).outputs
    assert len({output.text for output in outputs}) > 1
    assert all(re.fullmatch("[a-z]{5,9}", output.text) for output in outputs)


def test_an_end_of_one_s_own_is_only_an_end(llm: LLM) -> None:
    """Id 5 is a byte's, and it may end the output only where the grammar may end."""
    text = llm.generate("a", guided(regex="[a-z]{5,9}", end_id=5)).outputs[0].text
    assert re.fullmatch("[a-z]{5,9}", text)


@pytest.mark.parametrize("options", [{"ignore_eos": True}, {"end_id": -1}])
def test_without_an_end_there_is_no_grammar(llm: LLM, options: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="end token"):
        llm.generate("a", guided(regex="a", **options))


def test_turned_off_is_said(folder: Path) -> None:
    with make(folder, guided_decoding_backend=None) as llm:
        with pytest.raises(RequestError, match="guided_decoding_backend"):
            llm.generate("a", guided(regex="a"))
        assert len(llm.generate("a", SamplingParams(max_tokens=3, end_id=-1)).outputs[0].token_ids) == 3
    with make(folder, skip_tokenizer_init=True) as llm, pytest.raises(RequestError, match="tokenizer"):
        llm.generate([5], guided(regex="a", end_id=2))


class _Stuck:
    """A compiler that does not come back before it is told to."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def compile(self, request: Request) -> None:
        self.go.wait(60)
        raise ValueError("too late")


def test_what_waits_for_its_grammar_can_be_cancelled_and_times_out(folder: Path) -> None:
    stuck = _Stuck()
    with make(folder) as llm:
        backend = llm._engine.backend
        backend._grammars = grammars.GrammarCompiling(lambda: stuck.compile, backend._clock, limit=0.3)
        try:
            slow = llm.generate_async("a", guided(regex="a"))
            gone = llm.generate_async("a", guided(regex="a"))
            late = llm.generate_async("a", guided(regex="a"), timeout=0.1)
            gone.abort()
            assert gone.result(timeout=60).outputs[0].finish_reason == "cancelled"
            assert late.result(timeout=60).outputs[0].finish_reason == "timeout"
            with pytest.raises(RequestError, match=r"within 0\.3 seconds"):
                slow.result(timeout=60)
            assert llm.generate("a", SamplingParams(max_tokens=2, end_id=-1)).outputs[0].finish_reason == "length"
        finally:
            stuck.go.set()
        llm.check_integrity()


def test_the_end_of_the_engine_ends_what_waits_for_a_grammar(folder: Path) -> None:
    stuck = _Stuck()
    llm = make(folder)
    try:
        backend = llm._engine.backend
        backend._grammars = grammars.GrammarCompiling(lambda: stuck.compile, backend._clock)
        request = llm.generate_async("a", guided(regex="a"))
        llm.shutdown()
        with pytest.raises(Exception, match="shut down"):
            request.result(timeout=60)
    finally:
        stuck.go.set()
        llm.shutdown()
