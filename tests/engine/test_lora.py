"""Adapters through the Python API: who gets which, how they come and go, and what is refused."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from headrace import LLM, ConfigError, GuidedDecodingParams, KvCacheConfig, LoraConfig, LoRARequest, RequestError
from headrace import SamplingParams as Sampling
from headrace.eval import tiny
from headrace.weights.peft import read_adapter
from tiny_adapters import linear_maps, write_adapter
from tiny_text import write_tokenizer

PROMPT = [5, 9, 100, 7, 33, 200, 17, 80, 3, 41] * 4
TOKENS = Sampling(max_tokens=6, end_id=-1, logprobs=0)
FOREVER = Sampling(max_tokens=150, end_id=-1)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.no_grad():
        made = tiny.make("llama")
    folder = tmp_path_factory.mktemp("llama")
    tiny.save(made, folder)
    write_tokenizer(folder, made.config.vocab_size)
    return folder


@pytest.fixture(scope="session")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three of them."""
    folder = tmp_path_factory.mktemp("adapters")
    maps = linear_maps(model)
    return [write_adapter(folder / f"adapter-{i}", maps, seed=i, rank=2 + i) for i in range(3)]


def start(model: Path, **options: Any) -> LLM:
    usual = {"dtype": "float32", "num_threads": 1, "kv_cache_config": KvCacheConfig(max_tokens=2048)}
    return LLM(model, **{**usual, "lora_config": LoraConfig(max_loras=2, max_lora_rank=8), **options})


@pytest.fixture(scope="module")
def llm(model: Path) -> Iterator[LLM]:
    with start(model) as llm:
        yield llm
        until(lambda: not any(one["requests"] for one in llm.list_loras()))
        llm.check_integrity()


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)


def of(path: Path, number: int = 0) -> LoRARequest:
    return LoRARequest(path.name, number, str(path))


def result(output: Any) -> tuple[list[int], list[float]]:
    """Tokens and their logprobs, to the bit."""
    one = output.outputs[0]
    return one.token_ids, [entry[token].logprob for entry, token in zip(one.logprobs, one.token_ids, strict=True)]


def alone(llm: LLM, request: LoRARequest | None) -> tuple[list[int], list[float]]:
    return result(llm.generate(PROMPT, TOKENS, False, request))


def merged(model: Path, adapter: Path, to: Path) -> Path:
    """A checkpoint of the model with the adapter added to its weights."""
    shutil.copytree(model, to)
    tensors = load_file(to / "model.safetensors")
    for name, delta in read_adapter(adapter).modules.items():
        tensors[f"{name}.weight"] += delta.scale * delta.b @ delta.a
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    return to


def test_each_row_of_a_batch_gets_its_own_adapter(model: Path, adapters: list[Path], tmp_path: Path) -> None:
    with start(model, lora_config=None) as plain:
        want = [alone(plain, None)]
    for number, path in enumerate(adapters[:2]):
        with start(merged(model, path, tmp_path / str(number)), lora_config=None) as other:
            want.append(alone(other, None))
    with start(model) as llm:
        requests = [None, of(adapters[0], 0), of(adapters[1], 1)]
        outputs = llm.generate([PROMPT] * 12, TOKENS, False, requests * 4)
        alone_again = [alone(llm, request) for request in requests]
        witnesses = llm.get_stats()[-1]["witnesses"]
    for index, output in enumerate(outputs):
        tokens, logprobs = result(output)
        assert tokens == want[index % 3][0]
        # Beside others and with a prefix from the cache: the same bits. Of another engine's: without an adapter.
        assert (tokens, logprobs) == alone_again[index % 3]
        assert logprobs == pytest.approx(want[index % 3][1], abs=2e-4)
        assert index % 3 or logprobs == want[0][1]
    assert want[0][0] != want[1][0] != want[2][0]
    assert witnesses["adapter_rows"] > 0
    assert witnesses["batched_steps"] > 0


def test_a_prefix_is_shared_among_requests_of_one_adapter_only(llm: LLM, adapters: list[Path]) -> None:
    long = [7, *PROMPT]

    def cached(request: LoRARequest | None, salt: str | None = None) -> int:
        return llm.generate(long, TOKENS, False, request, cache_salt=salt).cached_tokens

    first, second = of(adapters[0], 10), of(adapters[1], 11)
    assert [cached(None), cached(first), cached(second)] == [0, 0, 0]
    assert [cached(None), cached(first), cached(second)] == [32, 32, 32]
    # No salt of a user's is taken for an adapter, and an adapter has salts of its own.
    content = read_adapter(adapters[0]).content
    assert [cached(None, f"lora:{content}:"), cached(first, "a"), cached(first, "b")] == [0, 0, 0]
    assert cached(first, "a") == 32
    # The same files under another name are the same adapter.
    for request in (first, second):
        llm.unload_lora(request.lora_name)
    assert cached(LoRARequest("other", 12, str(adapters[0]))) == 32
    llm.unload_lora("other")


def test_the_idle_make_room_and_requests_wait_for_it(model: Path, adapters: list[Path]) -> None:
    with start(model) as llm:
        want = {path: alone(llm, of(path, number)) for number, path in enumerate(adapters)}
        assert [one["lora_name"] for one in llm.list_loras()] == ["adapter-1", "adapter-2"]
        # All places are in use: the third waits until one is left.
        busy = [llm.generate_async(PROMPT, FOREVER, of(adapters[i], i), streaming=True) for i in (1, 2)]
        for one in busy:
            next(iter(one))
        waiting = llm.generate_async(PROMPT, TOKENS, of(adapters[0], 0))
        late = llm.generate_async(PROMPT, TOKENS, of(adapters[0], 0), timeout=0.05)
        gone = llm.generate_async(PROMPT, TOKENS, of(adapters[0], 0))
        gone.abort()
        assert late.result(timeout=30).outputs[0].finish_reason == "timeout"
        assert gone.result(timeout=30).outputs[0].finish_reason == "cancelled"
        assert not waiting.finished
        busy[0].abort()
        assert result(waiting.result(timeout=30)) == want[adapters[0]]
        busy[1].abort()
        outputs = llm.generate([PROMPT] * 30, TOKENS, False, [of(adapters[i % 3], i % 3) for i in range(30)])
        assert [result(output) for output in outputs] == [want[adapters[i % 3]] for i in range(30)]
        until(lambda: not any(one["requests"] for one in llm.list_loras()))
        assert len(llm.list_loras()) == 2


def test_what_is_loaded_by_name_stays_until_it_is_unloaded(model: Path, adapters: list[Path]) -> None:
    config = LoraConfig(lora_dir=(str(adapters[0]),), max_loras=2, max_lora_rank=8)
    with start(model, lora_config=config) as llm:
        by_name = LoRARequest("adapter-0", 0)
        want = alone(llm, by_name)
        llm.load_lora("mine", str(adapters[1]))
        assert alone(llm, LoRARequest("mine", 7)) != want
        with pytest.raises(RequestError, match="'mine' is loaded already"):
            llm.load_lora("mine", str(adapters[2]))
        with pytest.raises(RequestError, match=r"finds no place: 2 that were loaded by name stay .*max_loras"):
            llm.load_lora("third", str(adapters[2]))
        with pytest.raises(RequestError, match="finds no place"):
            alone(llm, of(adapters[2], 3))
        running = llm.generate_async(PROMPT, FOREVER, by_name, streaming=True)
        next(iter(running))
        llm.unload_lora("adapter-0")
        with pytest.raises(RequestError, match="'adapter-0' is not loaded; give its folder"):
            alone(llm, by_name)
        with pytest.raises(RequestError, match="no adapter 'adapter-0' is loaded; there are: 'mine'"):
            llm.unload_lora("adapter-0")
        # Its place is taken by the next only when who runs with it has ended, with it.
        third = llm.generate_async(PROMPT, TOKENS, of(adapters[2], 3))
        tokens = running.result(timeout=60).outputs[0].token_ids
        assert (len(tokens), tokens[:6]) == (150, want[0])
        assert result(third.result(timeout=60)) != want


def test_one_id_is_one_folder_until_it_is_unloaded(llm: LLM, adapters: list[Path]) -> None:
    first = of(adapters[0], 20)
    want = alone(llm, first)
    with pytest.raises(RequestError, match=r"lora_int_id=20 is 'adapter-0' of .*adapter-0; give 'x' another id"):
        alone(llm, LoRARequest("x", 20, str(adapters[1])))
    llm.unload_lora("adapter-0")
    assert alone(llm, LoRARequest("x", 20, str(adapters[1]))) != want
    llm.unload_lora("x")


def test_a_bad_adapter_fails_its_requests_only(llm: LLM, model: Path, adapters: list[Path], tmp_path: Path) -> None:
    maps = linear_maps(model)
    wide = write_adapter(tmp_path / "wide", maps, seed=0, rank=9)
    foreign = write_adapter(tmp_path / "foreign", {"model.layers.0.self_attn.q_proj": (128, 60)}, seed=0)
    head = write_adapter(tmp_path / "head", {"lm_head": (317, 64)}, seed=0)
    dora = write_adapter(tmp_path / "dora", maps, seed=0, use_dora=True)
    cases = {
        wide: "rank 9; set LoraConfig.max_lora_rank",
        foreign: r"q_proj has lora_A \[4, 60\] and lora_B \[128, 4\]; the model's module goes from 64 to 128 values",
        head: "changes lm_head, which takes no adapter here; those that do are down_proj",
        dora: "use_dora=True: DoRA",
        tmp_path / "none": "has no adapter_config.json",
    }
    good = llm.generate_async(PROMPT, TOKENS, of(adapters[0], 30))
    bad = [llm.generate_async(PROMPT, TOKENS, of(path, 31 + i)) for i, path in enumerate(cases)]
    for output, message in zip(bad, cases.values(), strict=True):
        with pytest.raises(RequestError, match=message) as caught:
            output.result(timeout=30)
        assert caught.value.param == "lora_request"
    assert result(good.result(timeout=30)) == alone(llm, of(adapters[0], 30))
    # Nothing is left of them: the id is free, and files that have been mended are read anew.
    assert [one["lora_name"] for one in llm.list_loras()] == ["adapter-0"]
    write_adapter(wide, maps, seed=0, rank=8)
    assert alone(llm, of(wide, 31))
    llm.unload_lora("wide")
    llm.unload_lora("adapter-0")


def test_outputs_of_one_request_and_grammars_go_with_an_adapter(llm: LLM, adapters: list[Path]) -> None:
    grammar = GuidedDecodingParams(regex="[a-d]{4}")
    both = Sampling(max_tokens=8, n=3, temperature=1.0, seed=5, guided_decoding=grammar)
    loaded = llm.generate_async("Once", both, of(adapters[2], 40)).result(timeout=30)
    again = llm.generate_async("Once", both, of(adapters[2], 40)).result(timeout=30)
    plain = llm.generate_async("Once", both).result(timeout=30)
    texts = [[one.text for one in output.outputs] for output in (loaded, again, plain)]
    assert texts[0] == texts[1] != texts[2]
    assert all(len(text) == 4 and set(text) <= set("abcd") for text in texts[0])
    llm.unload_lora("adapter-2")


def test_settings_that_cannot_be_are_refused(model: Path, adapters: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lora_target_modules has 'q_prj'.* are down_proj, .*Did you mean 'q_proj'"):
        start(model, lora_config=LoraConfig(lora_target_modules=("q_prj",)))
    with pytest.raises(ConfigError, match="enable_lora=False does not go with a lora_config"):
        start(model, enable_lora=False)
    with pytest.raises(ConfigError, match=r"LoraConfig\.lora_dir: adapter 'none': .* has no adapter_config\.json"):
        start(model, lora_config=LoraConfig(lora_dir=(str(tmp_path / "none"),)))
    with start(model, lora_config=None) as llm, pytest.raises(RequestError, match="enable_lora=True"):
        alone(llm, of(adapters[0]))
    only = LoraConfig(lora_target_modules=("attn_q", "o_proj"))
    with start(model, lora_config=only) as llm:
        assert llm.effective_config["lora_modules"] == ["o_proj", "q_proj"]
        with pytest.raises(RequestError, match=r"changes .*down_proj, and LoraConfig.lora_target_modules has q_proj"):
            alone(llm, of(adapters[0]))
    for wrong in ({"lora_name": "", "lora_int_id": 1}, {"lora_name": "a", "lora_int_id": -1}):
        with pytest.raises(RequestError, match="LoRARequest"):
            LoRARequest(**wrong)
