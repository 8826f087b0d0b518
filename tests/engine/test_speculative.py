"""Ways to draft, seen from the API: what is accepted, how often, whose error it is, and what is refused.

That none of them changes an output is shown by ``tests/pairs``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from draft_heads import write_head
from headrace import (
    LLM,
    AutoDecodingConfig,
    ConfigError,
    DraftTargetDecodingConfig,
    MTPDecodingConfig,
    NGramDecodingConfig,
    RequestError,
    SADecodingConfig,
    SamplingParams,
    UserProvidedDecodingConfig,
)
from headrace.core.config import LlmArgs
from headrace.engine.auto import with_drafter
from headrace.eval import tiny
from headrace.weights.checkpoint import open_checkpoint
from mtp_layers import make_llama_layer, write_layer, write_mtp


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.no_grad():
        return tiny.save(tiny.make("llama"), tmp_path_factory.mktemp("llama"))


def make(folder: Path, **args: Any) -> LLM:
    return LLM(folder, skip_tokenizer_init=True, num_threads=1, dtype="float32", **args)


def run(llm: LLM, **options: Any) -> tuple[list[list[int]], dict[str, int]]:
    """Tokens of six requests, half of them sampled, and the witnesses."""
    params = [
        SamplingParams(
            end_id=-1, detokenize=False, seed=3, **{"max_tokens": 24, "temperature": 0.9 * (i % 2), **options}
        )
        for i in range(6)
    ]
    requests = [llm.generate_async([5 + i, 6, 7] * 9, one) for i, one in enumerate(params)]
    tokens = [request.result(timeout=60).outputs[0].token_ids for request in requests]
    witnesses = llm.get_stats()[-1]["witnesses"]
    llm.check_integrity()
    return tokens, witnesses


def test_a_model_that_drafts_for_itself_is_always_right_at_any_temperature_and_steps_overlap(folder: Path) -> None:
    config = DraftTargetDecodingConfig(max_draft_len=4, speculative_model=str(folder))
    with make(folder, speculative_config=config) as llm:
        _, seen = run(llm)
        assert seen["drafts_proposed"] == seen["drafts_accepted"] == seen["draft_model_tokens"] > 60
        assert seen["overlapped_steps"] > 0
        before = seen["steps"]
        run(llm, max_tokens=21)
        # 21 tokens in 5 tokens a step, and those of the prompt that the prefix index did not have.
        assert llm.get_stats()[-1]["witnesses"]["steps"] - before <= 8


def test_a_prefix_hit_serves_the_draft_model_too(folder: Path) -> None:
    config = DraftTargetDecodingConfig(max_draft_len=4, speculative_model=str(folder))
    prompt = list(range(3, 163))
    with make(folder, speculative_config=config) as llm:
        for _ in range(2):
            out = llm.generate_async(prompt, SamplingParams(max_tokens=11, end_id=-1, detokenize=False))
            out.result(timeout=60)
        seen = llm.get_stats()[-1]["witnesses"]
    assert seen["cached_tokens.device"] >= 128
    assert seen["drafts_proposed"] == seen["drafts_accepted"] > 10


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vocab_size": 400}, "speculative_model has 400 tokens, the model 317"),
        ({"max_position_embeddings": 64}, r"made for 64 positions; set max_seq_len \(now \d+\) to at most that"),
    ],
)
def test_a_draft_model_of_another_vocabulary_or_too_short_is_refused(
    folder: Path, tmp_path: Path, changed: dict[str, int], message: str
) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | changed))
    with pytest.raises(ConfigError, match=message):
        make(folder, speculative_config=DraftTargetDecodingConfig(max_draft_len=2, speculative_model=str(other)))


def test_what_a_users_drafter_raises_ends_that_request_alone(folder: Path) -> None:
    def drafter(tokens: list[int], limit: int) -> list[int]:
        if tokens[0] == 7:
            raise ZeroDivisionError("no drafts today")
        if tokens[0] == 8:
            return [10**6]
        tokens.append(1)  # a copy: nobody minds
        return [4] * 99

    config = UserProvidedDecodingConfig(max_draft_len=2, drafter=drafter)
    with make(folder, speculative_config=config) as llm:
        params = SamplingParams(max_tokens=12, end_id=-1, detokenize=False)
        requests = {first: llm.generate_async([first, 5, 6], params) for first in (6, 7, 8, 9)}
        with pytest.raises(RequestError, match="ZeroDivisionError: no drafts today"):
            requests[7].result(timeout=60)
        with pytest.raises(RequestError, match="gave token 1000000"):
            requests[8].result(timeout=60)
        for first in (6, 9):
            assert len(requests[first].result(timeout=60).outputs[0].token_ids) == 12
        llm.check_integrity()


@pytest.mark.parametrize(
    ("pace", "drafts"),
    [
        ({}, True),
        ({"max_concurrency": 5}, False),
        ({"draft_len_schedule": {5: 3}}, False),
        ({"draft_len_schedule": {6: 1}}, True),
    ],
    ids=str,
)
def test_drafts_are_paced_by_how_many_run(folder: Path, pace: dict[str, Any], drafts: bool) -> None:
    config = SADecodingConfig(max_draft_len=4, min_matching_length=1, **pace)
    with make(folder, speculative_config=config) as llm:
        # All six run from the first step to the last.
        _, seen = run(llm)
    assert (seen["drafts_proposed"] > 0) == drafts


@pytest.mark.parametrize("option", ["rejection", "relaxed"])
def test_where_outputs_depend_on_drafts_they_depend_on_nothing_else(
    folder: Path, tmp_path: Path, option: str, caplog: pytest.LogCaptureFixture
) -> None:
    with torch.no_grad():
        other = tiny.save(tiny.make("llama", num_hidden_layers=1), tmp_path / "other")
    options: dict[str, Any] = {"use_rejection_sampling": True}
    if option == "relaxed":
        options = {"use_relaxed_acceptance_for_thinking": True, "relaxed_topk": 30, "relaxed_delta": 1.0}
        options |= {"begin_thinking_phase_token": 6, "end_thinking_phase_token": 300}
    config = DraftTargetDecodingConfig(max_draft_len=3, speculative_model=str(other), **options)
    with make(folder) as llm:
        plain, _ = run(llm)
    with make(folder, speculative_config=config) as llm:
        together, seen = run(llm, logprobs=1)
    assert f"use_{option}" in caplog.text
    assert 0 < seen["drafts_accepted"] < seen["drafts_proposed"]
    apart: dict[str, Any] = {"max_batch_size": 1, "disable_overlap_scheduler": True, "cuda_graph_config": None}
    with make(folder, speculative_config=config, max_num_tokens=16, sampler_type="TorchSampler", **apart) as llm:
        assert run(llm)[0] == together
    assert together[1::2] != plain[1::2]
    assert (together[::2] == plain[::2]) == (option == "rejection"), "greedy requests"


def test_auto_takes_what_there_is_says_what_and_stops_when_many_run(folder: Path, tmp_path: Path) -> None:
    with make(folder) as llm:
        plain, _ = run(llm)
    head = write_head(tmp_path / "head", folder)
    pace: dict[str, Any] = {"draft_len_schedule": {"4": 4, "16": 2}}
    layer = write_layer(tmp_path / "layer", folder, make_llama_layer(64, 317))
    expected: dict[Any, tuple[str, dict[str, Any]]] = {
        None: ("NGram", pace | {"is_public_pool": False}),
        str(layer): ("MTP", pace),
        str(folder): ("Draft_Target", pace),
        str(head): ("Eagle", {"max_concurrency": 6}),
    }
    for model, (kind, fields) in expected.items():
        own = {"max_concurrency": 6} if kind == "Eagle" else {}
        with make(folder, speculative_config=AutoDecodingConfig(speculative_model=model, **own)) as llm:
            chosen = llm.effective_config["speculative_config"]
            assert (chosen["decoding_type"], fields.items() <= chosen.items()) == (kind, True), chosen
            assert ("draft_len_schedule" in chosen) == (not own)
            tokens, seen = run(llm)
            assert tokens == plain
            assert seen["drafts_proposed"] > 0
            assert llm.generate([5, 6, 7], SamplingParams(max_tokens=2, detokenize=False))
            assert llm.get_stats()[0]["specDecodingStats"]["decodingType"] == kind


@pytest.mark.parametrize("variant", ["deepseek-v3", "nemotron-h-experts", "qwen3-next"])
def test_auto_takes_the_mtp_layer_that_a_checkpoint_carries(tmp_path: Path, variant: str) -> None:
    with torch.no_grad():
        model = tiny.make(variant)
        bare = tiny.save(model, tmp_path / "bare")
    carrying = Path(shutil.copytree(bare, tmp_path / "carrying"))
    write_mtp(carrying, model, "")
    for folder, kind in ((bare, NGramDecodingConfig), (carrying, MTPDecodingConfig)):
        checkpoint = open_checkpoint(folder)
        args = LlmArgs.from_call(str(folder), {"speculative_config": AutoDecodingConfig(max_draft_len=3)})
        chosen = with_drafter(args, checkpoint.config(), checkpoint).speculative_config
        checkpoint.close()
        assert isinstance(chosen, kind)
        assert chosen.draft_len_schedule == {4: 3, 16: 2}


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"max_draft_len": 3}, NGramDecodingConfig),
        ({"max_draft_len": 3, "decoding_type": "SA"}, SADecodingConfig),
        ({"max_draft_len": 3, "decoding_type": "Draft_Target", "speculative_model": "x"}, DraftTargetDecodingConfig),
    ],
)
def test_a_mapping_says_what_it_is_by_decoding_type(given: dict[str, Any], kind: type) -> None:
    assert isinstance(LlmArgs.from_call("x", {"speculative_config": given}).speculative_config, kind)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NGramDecodingConfig(max_draft_len=2, acceptance_window=3), "go together"),
        (lambda: UserProvidedDecodingConfig(max_draft_len=2, drafter="a.b"), "must be a function"),
        (lambda: SADecodingConfig(max_draft_len=2, relaxed_topk=3), "relaxed_topk goes with use_relaxed_acceptance"),
        (lambda: DraftTargetDecodingConfig(max_draft_len=2), "speculative_model"),
        (lambda: LlmArgs.from_call("x", {"speculative_config": {"decoding_type": "Medusa"}}), "Medusa.*NGram"),
    ],
)
def test_what_does_not_go_is_said(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()
