"""What ``LLM.encode`` gives: against transformers and plain torch in fp32, and its bits against a run alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from headrace import LLM, KvCacheConfig, PoolingParams, RequestError, SamplingParams
from headrace.eval.tiny import make, random_prompts, save
from headrace.eval.tiny_variants import LABELLED

TOLERANCE = 1e-4
"""Relative to the largest number there is."""
STEP = 7
CLASSIFIERS = [name for name in LABELLED if name.endswith("-labels")]
EMBEDDERS = ("llama-llama3", "qwen3-tied-biases", "gemma3-cap")


@dataclass(frozen=True, slots=True)
class Case:
    """A checkpoint, and what its rows give by the reference: [T] ids -> [T, width] before any pooling."""

    folder: Path
    rows: Callable[[list[int]], torch.Tensor]
    gives: str


def _hidden(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    return model.model(torch.tensor([ids])).last_hidden_state[0]


def labelled(folder: Path, name: str, **changes: Any) -> Case:
    """One of the tiny models that only encode. Where the class itself pools there is one row."""
    model = make(name, **changes)
    gives = "reward" if "reward" in name else "classification"
    return Case(save(model, folder), lambda ids: model(torch.tensor([ids])).logits.flatten(0, -2), gives)


def named(*labels: str) -> dict[str, Any]:
    """Fields of a configuration."""
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}


def embedder(folder: Path, variant: str) -> Case:
    model = make(variant)
    return Case(save(model, folder), lambda ids: _hidden(model, ids), "embedding")


def engine(case: Case, **settings: Any) -> LLM:
    plain = {"dtype": "float32", "skip_tokenizer_init": True, "num_threads": 1}
    return LLM(case.folder, **{**plain, **settings})


def alone(case: Case, **settings: Any) -> LLM:
    """One request at a time, each in one piece, nothing cached."""
    cache = KvCacheConfig(enable_block_reuse=False, max_tokens=512)
    return engine(case, max_batch_size=1, enable_chunked_prefill=False, kv_cache_config=cache, **settings)


def assert_near(got: np.ndarray, want: torch.Tensor) -> None:
    want = want.detach()
    assert got.shape == tuple(want.shape)
    assert np.abs(got - want.numpy()).max() <= TOLERANCE * max(1.0, want.abs().max().item())


@pytest.fixture
def prompts() -> list[list[int]]:
    """Of 1 to 200 tokens; those long enough have three steps, one of them at the end."""
    found = random_prompts(317)
    for prompt in found:
        prompt[:] = [token if token != STEP else STEP + 1 for token in prompt]
        if len(prompt) > 10:
            prompt[4] = prompt[len(prompt) // 2] = prompt[-1] = STEP
    return found


def test_reward_is_the_heads_output_at_the_last_token(tmp_path: Path, prompts: list[list[int]]) -> None:
    case = labelled(tmp_path, "qwen2-reward")
    with engine(case, max_num_tokens=48) as llm:
        for prompt, output in zip(prompts, llm.encode(prompts, use_tqdm=False), strict=True):
            assert_near(output.data, case.rows(prompt)[-1])
        whole = llm.encode(prompts[2], PoolingParams(pooling_type="all"))
        assert_near(whole.data, case.rows(prompts[2]))


def test_process_rewards_are_probabilities_at_the_separators(tmp_path: Path, prompts: list[list[int]]) -> None:
    case = labelled(tmp_path, "qwen2-process-reward")
    steps = [prompt for prompt in prompts if STEP in prompt]
    assert len(steps) >= 3
    with engine(case, max_num_tokens=48) as llm:
        for prompt, output in zip(
            steps, llm.encode(steps, PoolingParams(step_tag_id=STEP), use_tqdm=False), strict=True
        ):
            at = [i for i, token in enumerate(prompt) if token == STEP]
            assert_near(output.data, case.rows(prompt)[at].softmax(-1))
        raw = llm.encode(steps[0], PoolingParams(step_tag_id=STEP, use_activation=False))
        assert_near(raw.data, case.rows(steps[0])[[4, len(steps[0]) // 2, -1]])
        with pytest.raises(RequestError, match="has no step") as refused:
            llm.encode([3, 4, 5], PoolingParams(step_tag_id=STEP))
        assert refused.value.param == "prompt"
        with pytest.raises(RequestError, match="has no '<extra_0>'") as refused:
            llm.encode(steps[0])
        assert refused.value.param == "step_tag_id"


@pytest.mark.parametrize("variant", CLASSIFIERS)
def test_classifiers_equal_transformers(variant: str, tmp_path: Path, prompts: list[list[int]]) -> None:
    case = labelled(tmp_path, variant)
    with engine(case, max_num_tokens=48) as llm:
        assert llm.effective_config["pooling"]["labels"] == ["bad", "so so", "good"]
        logits = llm.encode(prompts, PoolingParams(use_activation=False), use_tqdm=False)
        chances = llm.encode(prompts, use_tqdm=False)
        for prompt, output, chance in zip(prompts, logits, chances, strict=True):
            want = case.rows(prompt)[-1]
            assert_near(output.data, want)
            assert_near(chance.data, want.softmax(-1))


@pytest.mark.parametrize(
    ("labels", "problem", "activation"),
    [
        (("score",), None, torch.sigmoid),
        (("score",), "regression", lambda logits: logits),
        (("a", "b", "c"), "multi_label_classification", torch.sigmoid),
        (("a", "b"), "single_label_classification", lambda logits: logits.softmax(-1)),
    ],
)
def test_what_makes_probabilities_is_the_problem_type(
    labels: tuple[str, ...], problem: str | None, activation: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path
) -> None:
    case = labelled(tmp_path, "qwen2-labels", problem_type=problem, **named(*labels))
    with engine(case) as llm:
        assert_near(llm.encode([5, 6, 9]).data, activation(case.rows([5, 6, 9])[-1]))


@pytest.mark.parametrize("variant", EMBEDDERS)
def test_any_decoder_gives_embeddings(variant: str, tmp_path: Path, prompts: list[list[int]]) -> None:
    case = embedder(tmp_path, variant)
    with engine(case, max_num_tokens=48) as llm:
        for kind, pool in {"last": lambda h: h[-1], "cls": lambda h: h[0], "mean": lambda h: h.mean(0)}.items():
            params = PoolingParams(pooling_type=kind)
            for prompt, output in zip(prompts, llm.encode(prompts, params, use_tqdm=False), strict=True):
                assert_near(output.data, torch.nn.functional.normalize(pool(case.rows(prompt)), dim=-1))
        want = case.rows(prompts[2])
        assert_near(llm.encode(prompts[2], PoolingParams(pooling_type="all", normalize=False)).data, want)
        cut = llm.encode(prompts[2], PoolingParams(dimensions=16))
        assert_near(cut.data, torch.nn.functional.normalize(want[-1, :16], dim=-1))
        assert llm.generate(prompts[2], SamplingParams(max_tokens=3, detokenize=False)).outputs[0].length > 0


def _every_pooling(case: Case) -> list[PoolingParams]:
    if case.gives == "embedding":
        return [PoolingParams(pooling_type=kind) for kind in ("last", "mean", "cls", "all")]
    return [PoolingParams(step_tag_id=STEP), PoolingParams(pooling_type="all")]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["embedding", "process reward"])
def test_bits_are_those_of_the_prompt_alone(kind: str, dtype: str, tmp_path: Path, prompts: list[list[int]]) -> None:
    """In company, cut into chunks of every size, found in the cache, preempted, overlapped."""
    case = embedder(tmp_path, "qwen3-sliding") if kind == "embedding" else labelled(tmp_path, "qwen2-process-reward")
    prompts = [prompt for prompt in prompts if STEP in prompt]
    prompts += [[*prompt[:45], STEP] for prompt in prompts[1:]]
    jobs = [(prompt, params) for params in _every_pooling(case) for prompt in prompts]
    with alone(case, dtype=dtype) as llm:
        plain = [llm.encode(prompt, params).data for prompt, params in jobs]
        is_exact = set(llm.effective_config["operators"].values()) == {"native"}
    long = SamplingParams(max_tokens=40, end_id=-1, detokenize=False)
    preemptions = 0
    for rows, cache_tokens in ((3, 2048), (31, 320), (64, 320), (500, 2048)):
        cache = KvCacheConfig(max_tokens=cache_tokens)
        with engine(case, dtype=dtype, max_num_tokens=rows, max_batch_size=6, kv_cache_config=cache) as llm:
            for _ in range(2):
                others = prompts if kind == "embedding" else []
                pressing = [llm.generate_async(prompt, long, priority=1.0) for prompt in others]
                outputs = llm.encode(*map(list, zip(*jobs, strict=True)), use_tqdm=False)
                assert all(one.result(60).finished for one in pressing)
                for output, want in zip(outputs, plain, strict=True):
                    if is_exact:
                        assert output.data.tobytes() == want.tobytes()
                    else:
                        assert np.abs(output.data - want).max() < 0.05
            witnesses = llm.get_stats()[-1]["witnesses"]
            llm.check_integrity()
        assert witnesses["pooled_rows"] > 0
        assert (witnesses["cached_tokens.device"] > 0) == (kind == "embedding")
        preemptions += witnesses["preemptions"]
    assert preemptions > 0


def test_what_a_model_does_not_give_is_refused(tmp_path: Path) -> None:
    label = labelled(tmp_path / "labels", "qwen2-labels", **named("a", "b"))
    embed = embedder(tmp_path / "embedder", "qwen2")
    refused = [
        (label, {"pooling_type": "mean"}, "pooling_type"),
        (label, {"normalize": True}, "normalize"),
        (label, {"dimensions": 1}, "dimensions"),
        (label, {"step_tag_id": 4}, "step_tag_id"),
        (embed, {"pooling_type": "step"}, "pooling_type"),
        (embed, {"use_activation": True}, "use_activation"),
        (embed, {"dimensions": 65}, "dimensions"),
        (embed, {"pooling_type": "max"}, "pooling_type"),
        (embed, {"pooling": "mean"}, "pooling"),
    ]
    engines = {case.folder: engine(case, max_seq_len=64) for case in (label, embed)}
    try:
        for case, params, field in refused:
            with pytest.raises(RequestError) as error:
                engines[case.folder].encode([5, 6], PoolingParams(**params))
            assert error.value.param == field
            assert field in str(error.value)
        with pytest.raises(RequestError, match="gives classification, no text"):
            engines[label.folder].generate([5, 6])
        # As long as a sequence may be: no place is kept for an output.
        assert engines[label.folder].encode([5] * 64).data.shape == (2,)
        with pytest.raises(RequestError, match="at most 64"):
            engines[label.folder].encode([5] * 65)
        cut = engines[label.folder].encode([6] + [5] * 64, PoolingParams(truncate_prompt_tokens=64))
        assert cut.prompt_token_ids == [5] * 64
    finally:
        for llm in engines.values():
            llm.shutdown()
