"""The Python API on a tiny model: what goes in, what comes back, and what happens when something is wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace import (
    LLM,
    CapacitySchedulerPolicy,
    CheckpointError,
    ConfigError,
    EngineDeadError,
    KvCacheConfig,
    ModelError,
    RequestError,
    SamplingParams,
    SchedulerConfig,
)
from headrace.engine import wire
from headrace.eval import tiny
from tiny_text import write_tokenizer

CACHE = KvCacheConfig(max_tokens=1024)
FOREVER = SamplingParams(max_tokens=200, end_id=-1)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.no_grad():
        model = tiny.make("llama")
    folder = tmp_path_factory.mktemp("llama")
    tiny.save(model, folder)
    write_tokenizer(folder, model.config.vocab_size)
    return folder


def make(folder: Path, **options: Any) -> LLM:
    return LLM(folder, **{"dtype": "float32", "num_threads": 1, "kv_cache_config": CACHE, **options})


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with make(folder) as llm:
        yield llm
        llm.check_integrity()


def idle(llm: LLM) -> None:
    """Nothing runs, waits or holds a block."""
    until = time.monotonic() + 20
    while llm.get_stats()[-1]["numActiveRequests"] or llm.get_stats()[-1]["numQueuedRequests"]:
        assert time.monotonic() < until
        time.sleep(0.01)
    llm.check_integrity()


# What goes in.


@pytest.mark.parametrize("prompt", ["hello", [7, 8, 9], {"prompt": "hello"}, {"prompt_token_ids": [7, 8, 9]}])
def test_every_form_of_prompt(llm: LLM, prompt: Any) -> None:
    output = llm.generate(prompt, SamplingParams(max_tokens=3, end_id=-1))
    assert len(output.outputs[0].token_ids) == 3
    assert output.finished
    assert output.outputs[0].finish_reason == "length"


def test_a_list_gives_a_list_in_order(llm: LLM) -> None:
    prompts = ["b", [7, 8, 9], {"prompt": "a"}]
    outputs = llm.generate(prompts, SamplingParams(max_tokens=2, end_id=-1), use_tqdm=False)
    assert [len(output.prompt_token_ids) for output in outputs] == [1, 3, 1]
    assert [output.prompt for output in outputs] == ["b", None, "a"]


@pytest.mark.parametrize(
    ("prompt", "word"),
    [
        ([], "empty"),
        ([5, 317], "317"),
        ([-1], "-1"),
        ([5] * 300, "300 tokens"),
        ({"prompt": "a", "prompt_token_ids": [1]}, "exactly one"),
        ({"promt": "a"}, "prompt"),
        (7.5, "not float"),
    ],
)
def test_bad_prompts_name_what_is_wrong(llm: LLM, prompt: Any, word: str) -> None:
    with pytest.raises(RequestError, match=word):
        llm.generate([prompt], SamplingParams(max_tokens=2))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperatur": 1.0}, "temperature"),
        ({"stop_token_ids": [317]}, "stop_token_ids"),
        ({"embedding_bias": {999: 1.0}}, "embedding_bias"),
        ({"use_beam_search": True}, "best_of"),
        ({"use_beam_search": True, "best_of": 2, "top_p": 0.5}, "top_p"),
        ({"use_beam_search": True, "best_of": 2, "n": 3}, "best_of"),
        ({"use_beam_search": True, "best_of": 3, "beam_width_array": (2, 4)}, "beam_width_array"),
        ({"use_beam_search": True, "best_of": 65}, "max_batch_size"),
        ({"length_penalty": 1.0}, "use_beam_search"),
        ({"best_of": 2}, "greedy"),
        ({"n": 2}, "greedy"),
        ({"n": 3, "best_of": 2, "temperature": 1.0}, "best_of"),
        ({"top_p": 1.5}, "top_p"),
        ({"apply_batched_logits_processor": True}, "batched_logits_processor"),
    ],
)
def test_bad_options_name_the_field(llm: LLM, options: dict[str, Any], word: str) -> None:
    with pytest.raises(RequestError, match=word):
        llm.generate("a", SamplingParams(**options))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"max_batchsize": 3}, "max_batch_size"),
        ({"lora_config": {"max_lora": 3}}, "max_lora"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size"),
        ({"max_seq_len": 100_000}, "256"),
        ({"max_seq_len": 50, "max_input_len": 50}, "no room"),
        ({"dtype": "int4"}, "dtype"),
        ({"kv_cache_config": {"dtype": "nvfp4"}}, "'auto', 'float32', 'bfloat16', 'float16', 'int8' or 'fp8'"),
        ({"tokenizer": 3}, "tokenizer"),
    ],
)
def test_bad_arguments_are_refused_at_construction(folder: Path, options: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        make(folder, **options)


def test_a_cache_in_one_byte_takes_a_quarter_and_its_scales(folder: Path, llm: LLM) -> None:
    wide = dict(llm.memory_report)["KV cache"]
    for name in ("int8", "fp8"):
        with make(folder, kv_cache_config={"max_tokens": 1024, "dtype": name}) as small:
            assert small.effective_config["kv_cache_dtype"] == name
            # 32 numbers and a scale of 4 bytes for 32 of 4 bytes.
            assert dict(small.memory_report)["KV cache"] / wide == pytest.approx(36 / 128, rel=0.02)
            assert small.generate([5, 6, 7, 8], SamplingParams(max_tokens=4, end_id=-1)).outputs[0].length == 4


def test_a_model_that_is_not_there() -> None:
    with pytest.raises(ModelError, match="smollm2"):
        LLM("smollm")


def test_a_damaged_checkpoint_names_its_file(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        make(tmp_path)


def test_the_prompt_is_truncated_from_the_left(llm: LLM) -> None:
    output = llm.generate([5, 6, 7, 8], SamplingParams(max_tokens=1, truncate_prompt_tokens=2))
    assert output.prompt_token_ids == [7, 8]


def test_random_weights_need_no_checkpoint(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with make(tmp_path, load_format="dummy", skip_tokenizer_init=True) as llm:
        params = SamplingParams(max_tokens=4, end_id=-1)
        assert len(llm.generate([5, 6], params).outputs[0].token_ids) == 4
        with pytest.raises(RequestError, match="token ids"):
            llm.generate("text", params)


# What comes back.


def test_logprobs_hold_the_token_and_the_top(llm: LLM) -> None:
    params = SamplingParams(max_tokens=5, end_id=-1, temperature=1.0, seed=3, logprobs=2, prompt_logprobs=0)
    output = llm.generate([5, 6, 7], params)
    one = output.outputs[0]
    assert len(one.logprobs) == 5
    for token, entry in zip(one.token_ids, one.logprobs, strict=True):
        assert token in entry
        assert 2 <= len(entry) <= 3
        ranks = [entry[key].rank for key in entry]
        assert set(ranks) >= {1, 2}
        assert max(entry.values()).rank == 1
    assert one.prompt_logprobs[0] is None
    assert [list(entry) for entry in one.prompt_logprobs[1:]] == [[6], [7]]
    total = sum(entry[token].logprob for token, entry in zip(one.token_ids, one.logprobs, strict=True))
    assert one.cumulative_logprob == pytest.approx(total)


def test_a_seed_repeats_and_a_missing_one_is_reported(llm: LLM) -> None:
    free = SamplingParams(max_tokens=12, end_id=-1, temperature=1.0)
    first = llm.generate([5, 6, 7], free)
    again = llm.generate([5, 6, 7], SamplingParams(max_tokens=12, end_id=-1, temperature=1.0, seed=first.seed))
    other = llm.generate([5, 6, 7], free)
    assert again.outputs[0].token_ids == first.outputs[0].token_ids
    assert other.outputs[0].token_ids != first.outputs[0].token_ids


def test_n_outputs_differ_and_each_ends(llm: LLM) -> None:
    output = llm.generate([5, 6, 7], SamplingParams(max_tokens=10, end_id=-1, temperature=1.0, seed=1, n=3))
    assert [one.index for one in output.outputs] == [0, 1, 2]
    assert len({tuple(one.token_ids) for one in output.outputs}) == 3
    assert output.finished


def test_stop_token_ids_and_end_id(llm: LLM) -> None:
    free = llm.generate([5, 6, 7], FOREVER).outputs[0].token_ids
    at = next(i for i in range(4, len(free)) if free[i] not in free[:i])
    by_id = llm.generate([5, 6, 7], SamplingParams(max_tokens=200, end_id=-1, stop_token_ids=[free[at]])).outputs[0]
    assert by_id.token_ids == free[: at + 1]
    assert (by_id.finish_reason, by_id.stop_reason) == ("stop", free[at])
    by_end = llm.generate([5, 6, 7], SamplingParams(max_tokens=200, end_id=free[at])).outputs[0]
    assert by_end.token_ids == by_id.token_ids
    assert (by_end.finish_reason, by_end.stop_reason) == ("stop", None)


def test_max_tokens_none_runs_to_the_sequence_limit(llm: LLM) -> None:
    output = llm.generate([5] * 250, SamplingParams(max_tokens=None, end_id=-1))
    assert len(output.outputs[0].token_ids) == 6
    assert output.outputs[0].finish_reason == "length"


def test_a_second_request_is_served_from_the_cache(llm: LLM) -> None:
    prompt = list(range(100, 200))
    params = SamplingParams(max_tokens=4, end_id=-1)
    first = llm.generate(prompt, params, cache_salt="a")
    second = llm.generate(prompt, params, cache_salt="a")
    salted = llm.generate(prompt, params, cache_salt="b")
    assert (first.cached_tokens, second.cached_tokens, salted.cached_tokens) == (0, 96, 0)
    assert first.outputs[0].token_ids == second.outputs[0].token_ids == salted.outputs[0].token_ids
    metrics = second.outputs[0].request_perf_metrics
    assert metrics.arrival_time <= metrics.first_token_time <= metrics.last_token_time


def test_statistics_have_the_known_keys(llm: LLM) -> None:
    llm.get_stats()
    llm.generate([5, 6], SamplingParams(max_tokens=3, end_id=-1))
    *iterations, snapshot = llm.get_stats()
    assert len(iterations) == 3
    assert {"iter", "iterLatencyMS", "inflightBatchingStats", "kvCacheStats", "specDecodingStats"} <= iterations[
        0
    ].keys()
    assert snapshot["kvCacheStats"]["tokensPerBlock"] == 32
    assert llm.effective_config["max_seq_len"] == 256
    assert [name for name, _ in llm.start_report][-1] == "assemble loop"


# The end of a request, and of an engine.


def test_cancel_while_running_and_while_waiting(folder: Path) -> None:
    with make(folder, max_batch_size=1) as llm:
        running, waiting = (llm.generate_async([5, 6, 7], FOREVER, streaming=True) for _ in range(2))
        next(iter(running))
        waiting.abort()
        assert waiting.result(20).outputs[0].finish_reason == "cancelled"
        assert waiting.outputs[0].token_ids == []
        running.abort()
        assert running.result(20).outputs[0].finish_reason == "cancelled"
        assert 0 < len(running.outputs[0].token_ids) < 200
        assert running.aborted()
        idle(llm)


def test_a_deadline_ends_a_request_with_what_is_there(folder: Path) -> None:
    with make(folder, max_batch_size=1) as llm:
        first = llm.generate_async([5, 6, 7], SamplingParams(max_tokens=240, end_id=-1))
        late = llm.generate([5, 6, 8], FOREVER, timeout=0.01)
        assert late.outputs[0].finish_reason == "timeout"
        assert first.result(60).outputs[0].finish_reason == "length"
        idle(llm)


def test_a_full_queue_refuses_only_the_newcomer(folder: Path) -> None:
    scheduler = SchedulerConfig(max_queue_size=1)
    with make(folder, max_batch_size=1, scheduler_config=scheduler) as llm:
        running = llm.generate_async([5, 6, 7], FOREVER, streaming=True)
        next(iter(running))
        waiting = llm.generate_async([5, 6, 7], SamplingParams(max_tokens=2, end_id=-1))
        with pytest.raises(RequestError, match="max_queue_size"):
            llm.generate([5, 6, 7], FOREVER)
        running.abort()
        assert waiting.result(20).outputs[0].finish_reason == "length"
        idle(llm)


def test_what_can_never_fit_is_refused(folder: Path) -> None:
    with make(folder, kv_cache_config=KvCacheConfig(max_tokens=64)) as llm:
        with pytest.raises(RequestError, match="max_tokens"):
            llm.generate([5] * 60, FOREVER)
        assert len(llm.generate([5] * 30, SamplingParams(max_tokens=10, end_id=-1)).outputs[0].token_ids) == 10
        idle(llm)


@pytest.mark.parametrize("policy", CapacitySchedulerPolicy)
def test_capacity_policies_give_the_same(folder: Path, policy: CapacitySchedulerPolicy) -> None:
    prompts = [[token] * 20 for token in range(10, 18)]
    params = SamplingParams(max_tokens=30, end_id=-1)
    with make(folder) as llm:
        expected = [llm.generate(prompt, params).outputs[0].token_ids for prompt in prompts]
    scheduler = SchedulerConfig(capacity_scheduler_policy=policy)
    with make(folder, kv_cache_config=KvCacheConfig(max_tokens=128), scheduler_config=scheduler) as llm:
        outputs = llm.generate(prompts, params, use_tqdm=False)
        preemptions = llm.get_stats()[-1]["witnesses"]["preemptions"]
    assert [output.outputs[0].token_ids for output in outputs] == expected
    assert (preemptions > 0) == (policy is CapacitySchedulerPolicy.MAX_UTILIZATION)


def test_nan_logits_fail_their_own_request_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with make(folder) as llm:
        worker = llm._engine.backend.executor._worker
        embed = worker._runner.model.embed
        original = type(embed).__call__

        def poisoned(self: Any, ids: torch.Tensor) -> torch.Tensor:
            return torch.where((ids == 99)[:, None], torch.nan, original(self, ids))

        monkeypatch.setattr(type(embed), "__call__", poisoned)
        good = llm.generate_async([5, 6, 7], SamplingParams(max_tokens=20, end_id=-1))
        with pytest.raises(RequestError, match="NaN"):
            llm.generate([5, 99, 7], SamplingParams(max_tokens=20, end_id=-1))
        assert len(good.result(20).outputs[0].token_ids) == 20
        idle(llm)


def test_a_worker_that_breaks_fails_all_and_every_later_call(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with make(folder) as llm:
        running = llm.generate_async([5, 6, 7], FOREVER, streaming=True)
        next(iter(running))

        def broken(*_: Any) -> Any:
            raise MemoryError("no more")

        monkeypatch.setattr(llm._engine.backend.executor._worker, "execute", broken)
        with pytest.raises(EngineDeadError, match="no more"):
            running.result(20)
        with pytest.raises(EngineDeadError, match="no more"):
            llm.generate([5], FOREVER)
        with pytest.raises(EngineDeadError):
            llm.get_stats()


def test_shutdown_cancels_and_may_be_called_twice(folder: Path) -> None:
    llm = make(folder)
    running = llm.generate_async([5, 6, 7], FOREVER)
    llm.shutdown()
    assert running.result(20).outputs[0].finish_reason in ("cancelled", "length")
    llm.shutdown()
    with pytest.raises(EngineDeadError):
        llm.generate([5], FOREVER)


def test_an_error_in_a_callback_is_the_request_s_own(llm: LLM) -> None:
    def fail_later(req_id: int, logits: torch.Tensor, token_ids: list[list[int]], *rest: object) -> None:
        if len(token_ids[0]) > 6:
            raise LookupError("no such luck")

    options = SamplingParams(max_tokens=20, end_id=-1)
    mine = llm.generate_async([5, 6, 7], options.model_copy(update={"logits_processor": (fail_later,)}))
    others = [llm.generate_async([5, 6, 7], options) for _ in range(3)]
    with pytest.raises(RequestError, match="no such luck"):
        mine.result(timeout=60)
    assert [len(other.result(timeout=60).outputs[0].token_ids) for other in others] == [20] * 3
    idle(llm)


def test_a_callable_is_refused_where_it_cannot_go() -> None:
    with pytest.raises(RequestError, match="logits_processor"):
        SamplingParams(logits_processor=3)
    with pytest.raises(ConfigError, match="batched_logits_processor"):
        LLM("nowhere", batched_logits_processor="no path")
    with pytest.raises(ConfigError, match="module:object"):
        LLM("nowhere", logits_processors={"mine": "module"})
    with pytest.raises(RequestError, match="process of its own"):
        wire.encode(SamplingParams(logits_processor=print))
