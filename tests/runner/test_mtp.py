"""MTP layers in the engine: every draft's logits against transformers' blocks in a plain loop, on every family."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from draft_heads import Seen
from headrace import LLM, ConfigError, KvCacheConfig, MTPDecodingConfig, SamplingParams
from headrace.eval import tiny
from mtp_layers import MtpLayer, add_layers, make_layer, make_llama_layer, write_layer, write_mtp

PROMPTS = [[5 + i, 6, 7, 8 + i] * (3 + 5 * i) for i in range(5)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any, MtpLayer]]:
    """Variant -> a folder with an MTP layer (its own, or of Llama's kind in ``mtp``), the reference model and layer."""

    @cache
    def make(variant: str) -> tuple[Path, Any, MtpLayer]:
        folder = tmp_path_factory.mktemp(variant)
        with torch.no_grad():
            model = tiny.make(variant)
            tiny.save(model, folder)
            return folder, model, write_mtp(folder, model, "mtp")

    return make


def run(folder: Path, config: MTPDecodingConfig | None, **args: Any) -> tuple[list[Any], dict[str, int]]:
    defaults = {"skip_tokenizer_init": True, "num_threads": 1, "dtype": "float32", "speculative_config": config}
    with LLM(folder, **{**defaults, **args}) as llm:
        requests = [
            llm.generate_async(
                prompt,
                SamplingParams(
                    max_tokens=12, end_id=-1, detokenize=False, seed=3, temperature=0.9 * (i % 2), n=1 + i % 2,
                    logprobs=1,
                ),
            )
            for i, prompt in enumerate(PROMPTS)
        ]  # fmt: skip
        outputs = [one for request in requests for one in request.result(timeout=60).outputs]
        witnesses = llm.get_stats()[-1]["witnesses"]
        llm.check_integrity()
    return [(one.token_ids, one.logprobs) for one in outputs], witnesses


def drafts(folder: Path, **changes: Any) -> MTPDecodingConfig:
    layer = folder / "mtp"
    return MTPDecodingConfig(
        **{"max_draft_len": 3, "speculative_model": str(layer) if layer.exists() else None, **changes}
    )


@torch.no_grad()
def guess(model: Any, layer: MtpLayer, history: list[int], n_drafts: int) -> torch.Tensor:
    """Logits of the token after ``history``, the last ``n_drafts`` of which are drafts."""
    known = len(history) - n_drafts
    ids = torch.tensor(history)
    states = model.model(ids[None, : known - 1]).last_hidden_state[0]
    # Rows of the table: what a model multiplies them with, the first norm divides by.
    e = model.get_input_embeddings().weight[ids[1:]]
    for _ in range(n_drafts + 1):
        made = layer(e[: len(states)], states)
        states = torch.cat([states, made[-1:]])
    return model.get_output_embeddings()(states[-1])


@torch.no_grad()
def guess_in_turn(model: Any, layers: list[MtpLayer], history: list[int], n_drafts: int) -> torch.Tensor:
    """As ``guess``, a layer for each draft: each reads the states that the one before it made."""
    n_states = len(history) - n_drafts - 1
    ids = torch.tensor(history)
    states = model.model(ids[None, :n_states]).last_hidden_state[0]
    e = model.get_input_embeddings().weight[ids]
    for index in range(n_drafts + 1):
        states = layers[index](e[1 + index : 1 + index + n_states], states)
    return model.get_output_embeddings()(states[-1])


GRAPHS: dict[str, Any] = {}
APART = {"mtp_eagle_one_model": False}
CHUNKS = {"cuda_graph_config": None, "enable_chunked_prefill": True, "max_num_tokens": 24}


@pytest.mark.parametrize(
    ("variant", "args", "changes"),
    [
        ("deepseek-v3", GRAPHS, {}),
        ("qwen3-next", CHUNKS, {}),
        ("nemotron-h-experts", GRAPHS, APART),
        ("llama", CHUNKS, {}),
        pytest.param("deepseek-v3", CHUNKS, APART, marks=pytest.mark.slow),
        pytest.param("qwen3-next", GRAPHS, APART, marks=pytest.mark.slow),
        pytest.param("llama4-chunk-40-odd", CHUNKS, APART, marks=pytest.mark.slow),
        pytest.param("deepseek-v3", CHUNKS, {}, marks=pytest.mark.slow),
        pytest.param("qwen3-next", GRAPHS, {}, marks=pytest.mark.slow),
        pytest.param("nemotron-h-experts", CHUNKS, {}, marks=pytest.mark.slow),
        pytest.param("gemma3-untied-window-40", GRAPHS, {}, marks=pytest.mark.slow),
        pytest.param("llama4-chunk-40-odd", GRAPHS, {}, marks=pytest.mark.slow),
    ],
)
def test_every_drafts_logits_are_those_of_the_plain_computation(
    made: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    variant: str,
    args: dict[str, Any],
    changes: dict[str, Any],
) -> None:
    folder, model, layer = made(variant)
    seen = Seen(monkeypatch)
    # With a prefix hit, the key of a block's last token has seen another text's next token.
    outputs, witnesses = run(
        folder, drafts(folder, **changes), kv_cache_config=KvCacheConfig(enable_block_reuse=False), **args
    )
    assert witnesses["mtp_tokens"] == len(seen.draws) > 100
    assert {length for _, length, _ in seen.draws} == {0, 1, 2}
    assert (witnesses.get("draft_cache_blocks", 0) > 0) == (changes is APART)
    assert (witnesses.get("graph_replays", 0) > 0) == (args is GRAPHS)
    for history, n_drafts, logits in seen.draws[:: len(seen.draws) // 24]:
        torch.testing.assert_close(logits, guess(model, layer, history, n_drafts), atol=4e-4, rtol=4e-4)
    assert 0 < witnesses["drafts_accepted"] < witnesses["drafts_proposed"]
    assert outputs == run(folder, None)[0]


@pytest.mark.parametrize(
    ("variant", "args"),
    [("deepseek-v3", GRAPHS), pytest.param("nemotron-h-experts", CHUNKS, marks=pytest.mark.slow)],
)
def test_layers_one_behind_another_are_those_of_the_plain_computation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str, args: dict[str, Any]
) -> None:
    """Two layers for three drafts: the first one has two turns."""
    with torch.no_grad():
        model = tiny.make(variant)
        folder = tiny.save(model, tmp_path / "model")
    layers = [make_layer(model, seed) for seed in ("first", "second")]
    add_layers(folder, layers)
    seen = Seen(monkeypatch)
    cache, config = KvCacheConfig(enable_block_reuse=False), drafts(folder, use_mtp_vanilla=True)
    outputs, witnesses = run(folder, config, kv_cache_config=cache, **args)
    assert witnesses["mtp_tokens"] == len(seen.draws) > 100
    assert {length for _, length, _ in seen.draws} == {0, 1, 2}
    for history, n_drafts, logits in seen.draws[:: len(seen.draws) // 24]:
        wanted = guess_in_turn(model, [*layers, layers[0]], history, n_drafts)
        torch.testing.assert_close(logits, wanted, atol=4e-4, rtol=4e-4)
    assert outputs == run(folder, None)[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_nextn_predict_layers": 2}, "older name of max_draft_len=3"),
        ({"use_mtp_vanilla": True, "mtp_eagle_one_model": False}, "mtp_eagle_one_model=False is about a layer"),
        ({"use_mtp_vanilla": True, "use_rejection_sampling": True}, "use_rejection_sampling makes outputs depend"),
    ],
)
def test_options_that_say_two_things_are_refused(made: Callable[[str], Any], changes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(made("llama")[0], {"decoding_type": "MTP", "max_draft_len": 3, **changes})  # type: ignore[arg-type]


def test_a_checkpoint_without_a_layer_is_refused(made: Callable[[str], Any], tmp_path: Path) -> None:
    with torch.no_grad():
        bare = tiny.save(tiny.make("deepseek-v3"), tmp_path / "bare")
    with pytest.raises(ConfigError, match=r"has no MTP layer: .*set speculative_model"):
        run(bare, MTPDecodingConfig())
    folder = made("llama")[0]
    with pytest.raises(ConfigError, match="is a LlamaForCausalLM, which carries no MTP layer"):
        run(folder, MTPDecodingConfig())
    layer = write_layer(tmp_path / "narrow", folder, make_llama_layer(32, 317))
    (layer / "config.json").write_text((layer / "config.json").read_text().replace(": 64", ": 32", 1))
    with pytest.raises(ConfigError, match="made for hidden_size = 32 and 317 tokens"):
        run(folder, MTPDecodingConfig(speculative_model=str(layer)))
