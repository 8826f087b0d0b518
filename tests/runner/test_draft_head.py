"""EAGLE-3 heads in the engine: every draft's logits against a plain computation, whatever else the engine does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from draft_heads import Seen, error, write_head
from headrace import LLM, CheckpointError, ConfigError, EagleDecodingConfig, KvCacheConfig, ModelError, SamplingParams
from headrace.eval import tiny

PROMPTS = [[5 + i, 6, 7, 8 + i] * (3 + 5 * i) for i in range(5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.no_grad():
        return tiny.save(tiny.make("llama"), tmp_path_factory.mktemp("llama"))


def run(folder: Path, head: Path | None, **args: Any) -> tuple[list[list[int]], dict[str, int]]:
    config = None if head is None else EagleDecodingConfig(max_draft_len=3, speculative_model=str(head))
    defaults = {"skip_tokenizer_init": True, "num_threads": 1, "dtype": "float32", "speculative_config": config}
    with LLM(folder, **{**defaults, **args}) as llm:
        requests = [
            llm.generate_async(
                prompt,
                SamplingParams(
                    max_tokens=12, end_id=-1, detokenize=False, seed=3, temperature=0.9 * (i % 2), n=1 + i % 2
                ),
            )
            for i, prompt in enumerate(PROMPTS)
        ]
        tokens = [one.token_ids for request in requests for one in request.result(timeout=60).outputs]
        witnesses = llm.get_stats()[-1]["witnesses"]
        llm.check_integrity()
    return tokens, witnesses


@pytest.mark.parametrize(
    ("changes", "args"),
    [
        ({}, {}),
        ({}, {"cuda_graph_config": None, "enable_chunked_prefill": True, "max_num_tokens": 24}),
        pytest.param(
            {"draft_vocab": None, "norm_before_residual": True},
            {"kv_cache_config": {"max_tokens": 256}},
            marks=pytest.mark.slow,
        ),
        pytest.param({"norm_output": True}, {"disable_overlap_scheduler": True}, marks=pytest.mark.slow),
    ],
    ids=["graphs", "chunks", "preemption-own-norms-whole-vocabulary", "recycled-normed"],
)
def test_every_drafts_logits_are_those_of_the_plain_computation(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], args: dict[str, Any]
) -> None:
    head, seen = write_head(tmp_path / "head", folder, **changes), Seen(monkeypatch)
    # With a prefix hit, the key of a block's last token has seen another text's next token.
    cache = KvCacheConfig(enable_block_reuse=False, **args.pop("kv_cache_config", {}))
    tokens, witnesses = run(folder, head, kv_cache_config=cache, **args)
    assert witnesses["draft_head_tokens"] == len(seen.draws) > 100
    assert {length for _, length, _ in seen.draws} == {0, 1, 2}
    assert error(folder, head, seen.draws[:: len(seen.draws) // 24]) < 5e-4
    monkeypatch.undo()
    assert tokens == run(folder, None)[0]


def test_a_prefix_hit_serves_the_head_too(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head, seen = write_head(tmp_path / "head", folder), Seen(monkeypatch)
    config = EagleDecodingConfig(max_draft_len=2, speculative_model=str(head))
    params = SamplingParams(max_tokens=6, end_id=-1, detokenize=False)
    prompt = list(range(3, 163))
    with LLM(folder, skip_tokenizer_init=True, num_threads=1, dtype="float32", speculative_config=config) as llm:
        for _ in range(2):
            llm.generate_async(prompt, params).result(timeout=60)
        assert llm.get_stats()[-1]["witnesses"]["cached_tokens.device"] >= 128
    # The same text again: nothing in the blocks is another's.
    assert error(folder, head, seen.draws) < 5e-4


def test_layers_are_named_in_either_way(folder: Path, tmp_path: Path) -> None:
    """Ids whose first is 1 are outputs, others are inputs; ``eagle3_layer_ids`` and ``eagle3_layers_to_capture``
    win."""
    from headrace.models.eagle3 import tapped_layers

    def named(*ids: int) -> dict[str, Any]:
        return {"eagle_config": {"eagle_aux_hidden_state_layer_ids": list(ids)}}

    assert tapped_layers(named(2, 16, 29), 32, None, "auto") == [1, 15, 28]
    assert tapped_layers(named(1, 15, 28), 32, None, "auto") == [1, 15, 28]
    assert tapped_layers(named(1, 15, 28), 32, None, "inputs") == [0, 14, 27]
    assert tapped_layers(named(2, 16, 29), 32, None, "outputs") == [2, 16, 29]
    assert tapped_layers({}, 32, None, "auto") == [1, 15, 28]
    assert tapped_layers(named(2, 16, 29), 32, (0, 1, 2), "auto") == [0, 1, 2]
    with pytest.raises(ConfigError, match=r"the model has 3 layers.*eagle3_layers_to_capture"):
        tapped_layers({}, 3, None, "auto")


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"vocab_size": 400}, ConfigError, "made for 400 tokens, the model has 317"),
        ({"num_hidden_layers": 2}, ModelError, "num_hidden_layers = 2; a draft head has one layer"),
        ({"fc_norm": True}, ModelError, "fc_norm is set"),
        ({"architectures": ["LlamaForCausalLM"]}, ConfigError, "an EAGLE-3 head is one of LlamaForCausalLMEagle3"),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [2, 9]}}, ConfigError, r"layers \[1, 8\].*from 0 to 2"),
        ({"hidden_size": 32}, ModelError, "hidden_size = 32 is not the target's 64"),
    ],
)
def test_a_head_that_does_not_belong_to_the_model_is_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any], kind: type[Exception], message: str
) -> None:
    head = write_head(tmp_path / "head", folder)
    config = json.loads((head / "config.json").read_text())
    (head / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(kind, match=message):
        run(folder, head)


def test_a_reduced_vocabulary_must_say_which_tokens_it_has(folder: Path, tmp_path: Path) -> None:
    from headrace.weights.dummy import write_safetensors

    head = write_head(tmp_path / "head", folder)
    tensors = load_file(head / "model.safetensors")
    config = json.loads((head / "config.json").read_text())
    for d2t, message in ((None, "no tensor 'd2t'"), (tensors.pop("d2t") + 300, "leads out of the vocabulary")):
        write_safetensors(head, config, tensors if d2t is None else tensors | {"d2t": d2t})
        with pytest.raises(CheckpointError, match=message):
            run(folder, head)
