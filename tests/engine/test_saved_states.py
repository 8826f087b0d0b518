"""Hidden states on disk: what is in the files, who is in them, and what happens when there is no room for them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace import (
    LLM,
    ConfigError,
    EngineError,
    KvCacheConfig,
    RequestError,
    SamplingParams,
    SaveHiddenStatesDecodingConfig,
)
from headrace.eval import tiny
from headrace.train.conversations import read_data
from headrace.train.lessons import Conversation, Recorded, Teacher
from tiny_text import write_tokenizer

LAYERS = (1, 2, 3)
"""The usual ones of seven layers."""


@pytest.fixture(scope="module")
def reference() -> Any:
    with torch.no_grad():
        return tiny.make("llama", num_hidden_layers=7)


@pytest.fixture(scope="module")
def folder(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.save(reference, tmp_path_factory.mktemp("llama"))
    write_tokenizer(folder, 317)
    return folder


def engine(folder: Path, out: Path, *, kv_tokens: int = 4096, **args: Any) -> LLM:
    options = {name: args.pop(name) for name in ("eagle3_layers_to_capture", "write_interval") if name in args}
    config = SaveHiddenStatesDecodingConfig(output_directory=str(out), **options)
    cache = KvCacheConfig(max_tokens=kv_tokens)
    return LLM(folder, dtype="float32", num_threads=1, speculative_config=config, kv_cache_config=cache, **args)


PROMPTS = [[5 + i, 6, 7, 8] * (3 + 4 * i) for i in range(6)]


def answers(llm: LLM) -> list[tuple[int, ...]]:
    """The tokens of requests, greedy and drawn; one that never ends is cancelled."""
    params = [SamplingParams(max_tokens=12, temperature=0.9 * (i % 2), seed=3, end_id=-1) for i in range(6)]
    requests = [llm.generate_async(prompt, one) for prompt, one in zip(PROMPTS, params, strict=True)]
    stranger = llm.generate_async([9, 9, 9], SamplingParams(max_tokens=150, end_id=-1))
    tokens = [tuple(request.result(timeout=60).outputs[0].token_ids) for request in requests]
    stranger.abort()
    stranger.result(timeout=60)
    return tokens


def records(out: Path) -> dict[tuple[int, ...], dict[str, Any]]:
    """By tokens."""
    every = [one for path in sorted(out.glob("*.pt")) for one in torch.load(path, weights_only=True)]
    found = {tuple(one["input_ids"].tolist()): one for one in every}
    assert len(found) == len(every)
    return found


def test_files_have_the_states_of_every_token_the_same_bits_however_they_were_computed(
    folder: Path, reference: Any, tmp_path: Path
) -> None:
    with engine(
        folder, tmp_path / "one", max_batch_size=1, disable_overlap_scheduler=True, cuda_graph_config=None
    ) as llm:
        plain = answers(llm)
    with engine(folder, tmp_path / "many", kv_tokens=192, max_batch_size=8, max_num_tokens=24, write_interval=2) as llm:
        assert answers(llm) == plain
        seen = llm.get_stats()[-1]["witnesses"]
        llm.check_integrity()
    assert (
        min(seen[name] for name in ("saved_states", "preemptions", "chunks", "graph_replays", "overlapped_steps")) > 0
    )
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == [f"data_{i}.pt" for i in range(3)]
    one, many = records(tmp_path / "one"), records(tmp_path / "many")
    whole = [(*prompt, *answer[:-1]) for prompt, answer in zip(PROMPTS, plain, strict=True)]
    assert set(one) == set(many) == set(whole)
    for index, tokens in enumerate(whole):
        mine, other = one[tokens], many[tokens]
        assert torch.equal(mine["hidden_state"], other["hidden_state"])
        assert torch.equal(mine["aux_hidden_states"], other["aux_hidden_states"])
        assert (mine["prompt_tokens"], mine["layers"]) == (len(PROMPTS[index]), list(LAYERS))
        assert mine["temperature"] == pytest.approx(0.9 * (index % 2))
    tokens = whole[3]
    with torch.no_grad():
        states = reference(torch.tensor([tokens]), output_hidden_states=True).hidden_states
    expected = torch.cat([states[layer + 1][0] for layer in LAYERS], 1)
    torch.testing.assert_close(one[tokens]["aux_hidden_states"], expected, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(one[tokens]["hidden_state"], states[-1][0], atol=2e-4, rtol=2e-4)


def test_training_reads_the_files_as_if_the_model_had_run(folder: Path, tmp_path: Path) -> None:
    with engine(folder, tmp_path / "out") as llm:
        answers(llm)
    data = read_data(tmp_path / "out")
    teacher = Teacher(folder, "float32", 64, of_layers=True)
    assert len(data) == 6
    for one in data:
        assert isinstance(one, Recorded)
        told, run = teacher.lesson(one.cut(48)), teacher.lesson(Conversation(one.tokens[:48], one.n_prompt))
        for name in ("tokens", "states", "last", "top_ids", "top_probs"):
            assert torch.equal(getattr(told, name), getattr(run, name)), name
    with engine(folder, tmp_path / "others", eagle3_layers_to_capture=(0, 5, -1)) as llm:
        answers(llm)
    with pytest.raises(ConfigError, match=r"states of the layers \[0, 5\].*reads \[1, 2, 3\]"):
        teacher.lesson(read_data(tmp_path / "others")[0])
    (tmp_path / "others" / "data_9.pt").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"data_9\.pt: not hidden states"):
        read_data(tmp_path / "others")


def test_an_output_that_ends_in_its_text_is_written_and_numbers_go_on(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data_4.pt").write_bytes(b"somebody else's")
    with engine(folder, tmp_path, write_interval=1) as llm:
        free = llm.generate([5, 6, 7], SamplingParams(max_tokens=30, end_id=-1))
        text = free.outputs[0].text
        assert text
        params = SamplingParams(max_tokens=30, end_id=-1, stop=text[len(text) // 2 :][:3])
        stopped = llm.generate([5, 6, 7], params)
        assert stopped.outputs[0].finish_reason == "stop"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data_4.pt", "data_5.pt", "data_6.pt"]
    ((one,), (other,)) = (torch.load(tmp_path / f"data_{n}.pt", weights_only=True) for n in (5, 6))
    n = len(other["input_ids"])
    assert len(stopped.outputs[0].token_ids) + 2 <= n < len(one["input_ids"])
    assert torch.equal(other["hidden_state"], one["hidden_state"][:n])


def test_what_cannot_be_written_is_kept_and_the_next_request_says_so(folder: Path, tmp_path: Path) -> None:
    out, params = tmp_path / "out", SamplingParams(max_tokens=3, end_id=-1)
    with engine(folder, out, write_interval=1) as llm:
        shutil.rmtree(out)
        llm.generate([5, 6, 7], params)
        with pytest.raises(RequestError, match=r"states of 1 outputs cannot be written to .*No such file"):
            llm.generate([5, 6, 8], params)
        out.mkdir()
        llm.generate([5, 6, 9], params)
        llm.check_integrity()
    assert [tokens[:3] for tokens in records(out)] == [(5, 6, 7), (5, 6, 9)]
    llm = engine(folder, out, write_interval=1)
    shutil.rmtree(out)
    llm.generate([5, 6, 7], params)
    with pytest.raises(EngineError, match="they are lost"):
        llm.shutdown()


def test_what_does_not_go_is_said(folder: Path, tmp_path: Path) -> None:
    config = SaveHiddenStatesDecodingConfig(output_directory=str(tmp_path))
    with pytest.raises(ConfigError, match="enable_block_reuse=True: of tokens that come from the cache"):
        LLM(folder, speculative_config=config, kv_cache_config=KvCacheConfig(enable_block_reuse=True))
    with pytest.raises(ConfigError, match=r"layers \[5, 9\] are asked for; give them in order, from 0 to 6"):
        engine(folder, tmp_path, eagle3_layers_to_capture=(5, 9))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"output_directory=.*file"):
        engine(folder, tmp_path / "file")
    with engine(folder, tmp_path) as llm:
        assert "kv_reuse" in llm.effective_config["absent_features"]
        with pytest.raises(RequestError, match="beams share what was computed"):
            llm.generate([5, 6, 7], SamplingParams(max_tokens=3, use_beam_search=True, best_of=2))
