"""What an operator asks, and the plan of the events."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving_rig import NAME, Running, served_apart

from headrace import KvCacheConfig


def test_models_version_and_configuration(tiny: Running) -> None:
    assert [model.id for model in tiny.client().models.list()] == [NAME]
    assert tiny.client().models.retrieve(NAME).id == NAME
    assert tiny.get("/version").json() == {"version": version("headrace")}
    info = tiny.get("/server_info").json()
    assert info["config"] == tiny.llm.effective_config
    assert info["start_seconds"].keys() == dict(tiny.llm.start_report).keys()


def test_health(tiny: Running) -> None:
    assert tiny.get("/health").status_code == 200
    tiny.get("/perf_metrics")
    assert tiny.get("/health_generate").status_code == 200
    assert tiny.get("/perf_metrics").json() == []
    tiny.idle()


def test_statistics_of_iterations(tiny: Running) -> None:
    tiny.get("/metrics")
    tiny.post("/v1/completions", {"prompt": "a", "max_tokens": 3, "ignore_eos": True})
    *iterations, snapshot = tiny.get("/metrics").json()
    assert len(iterations) == 3
    assert iterations[0]["inflightBatchingStats"]["numScheduledRequests"] == 1
    assert "witnesses" in snapshot


def _samples(tiny: Running) -> dict[str, float]:
    families = text_string_to_metric_families(tiny.get("/prometheus/metrics").text)
    return {sample.name + "".join(sample.labels.values()): sample.value for one in families for sample in one.samples}


def test_prometheus_counts_what_happened(tiny: Running) -> None:
    before = _samples(tiny)
    tiny.post("/v1/completions", {"prompt": ["ab", "c"], "max_tokens": 5, "ignore_eos": True})
    tiny.post("/v1/completions", {"prompt": "a", "max_tokens": 5000})
    after = _samples(tiny)
    grown = {name: after[name] - before.get(name, 0.0) for name in after}
    assert grown["headrace_request_success_totallength"] == 2
    assert grown["headrace_request_failure_total"] == 1
    assert grown["headrace_prompt_tokens_total"] == 3
    assert grown["headrace_generation_tokens_total"] == 10
    assert grown["headrace_time_to_first_token_seconds_count"] == 2
    assert after["headrace_e2e_request_latency_seconds_sum"] >= after["headrace_time_to_first_token_seconds_sum"] > 0
    assert after["headrace_requests_running"] == 0
    assert grown["headrace_request_queue_time_seconds_count"] == 2
    assert after["headrace_request_queue_time_seconds_sum"] <= after["headrace_time_to_first_token_seconds_sum"]


def test_records_of_finished_requests_are_handed_out_once(tiny: Running) -> None:
    tiny.get("/perf_metrics")
    body = {"prompt": "ab", "max_tokens": 5, "ignore_eos": True, "n": 2}
    name = tiny.post("/v1/completions", body).json()["id"]
    chat = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 3, "ignore_eos": True, "stream": True}
    tiny.post("/v1/chat/completions", chat)
    tiny.post("/v1/completions", {"prompt": "a", "max_tokens": 5000})
    records = tiny.get("/perf_metrics").json()
    assert [(one["index"], one["completion_tokens"], one["finish_reason"]) for one in records] == [
        (0, 5, "length"),
        (1, 5, "length"),
        (0, 3, "length"),
    ]
    assert [one["id"] for one in records[:2]] == [name, name]
    assert records[2]["id"].startswith("chatcmpl-")
    assert records[0]["request_id"] == records[1]["request_id"] != records[2]["request_id"]
    for one in records:
        times = list(one["perf_metrics"]["timing_metrics"].values())
        assert len(times) == 4
        assert times == sorted(times)
    assert tiny.get("/perf_metrics").json() == []


def test_only_so_many_records_are_kept(serve: object) -> None:
    with serve({"perf_metrics_max_requests": 2}) as running:
        for length in (1, 2, 3):
            running.post("/v1/completions", {"prompt": "a", "max_tokens": length, "ignore_eos": True})
        assert [one["completion_tokens"] for one in running.get("/perf_metrics").json()] == [2, 3]
    with serve({"perf_metrics_max_requests": 0}) as running:
        running.post("/v1/completions", {"prompt": "a", "max_tokens": 1})
        assert "--perf-metrics-max-requests" in running.get("/perf_metrics").json()["error"]["message"]


def test_records_of_drafts(serve: object) -> None:
    with serve(speculative_config={"max_draft_len": 3}) as running:
        body = {"prompt": "a", "max_tokens": 200, "temperature": 0, "ignore_eos": True}
        assert running.post("/v1/completions", body).status_code == 200
        drafts = running.get("/perf_metrics").json()[0]["perf_metrics"]["speculative_decoding"]
        assert 0 < drafts["total_accepted_draft_tokens"] <= drafts["total_draft_tokens"]
        assert drafts["acceptance_rate"] == drafts["total_accepted_draft_tokens"] / drafts["total_draft_tokens"]
        samples = _samples(running)
        assert samples["headrace_spec_decode_draft_tokens_total"] == drafts["total_draft_tokens"]


def test_tokens_there_and_back(tiny: Running) -> None:
    got = tiny.post("/tokenize", {"prompt": "naïve 🙂"}).json()
    assert got["tokens"] == tiny.llm.tokenizer.encode("naïve 🙂")
    assert got["count"] == len(got["tokens"])
    assert got["max_model_len"] == 2048
    assert tiny.post("/detokenize", {"tokens": got["tokens"]}).json() == {"prompt": "naïve 🙂"}
    assert tiny.post("/detokenize", {"tokens": [1, 70], "skip_special_tokens": True}).json()["prompt"][:3] != "<s>"


def test_tokens_with_their_texts_and_a_template_with_its_variables(tiny: Running) -> None:
    got = tiny.post("/tokenize", {"prompt": "né", "return_token_strs": True}).json()
    assert got["token_strs"] == ["n", "bytes:\\xc3", "bytes:\\xa9"]
    asked = {"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"enable_thinking": True}}
    assert tiny.post("/tokenize", asked).json()["count"] == len("<user>a\n<assistant>")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": "a", "add_generation_prompt": True}),
        ("/tokenize", {"prompt": "a", "tools": [{}]}),
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}),
        ("/detokenize", {"tokens": [320]}),
        ("/detokenize", {"tokens": [1 << 40]}),
    ],
)
def test_wrong_tokens_are_refused(tiny: Running, path: str, body: dict[str, object]) -> None:
    assert tiny.post(path, body).status_code == 400


def test_a_model_without_a_tokenizer_takes_ids_only(serve: object) -> None:
    with serve(skip_tokenizer_init=True) as running:
        got = running.post("/v1/completions", {"prompt": [5, 6], "max_tokens": 2, "logprobs": 1, "ignore_eos": True})
        tokens = got.json()["choices"][0]["logprobs"]["tokens"]
        assert all(token.startswith("token_id:") for token in tokens)
        for path, body in (
            ("/v1/completions", {"prompt": "a"}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
            ("/detokenize", {"tokens": [5]}),
        ):
            assert "tokenizer" in running.post(path, body).json()["error"]["message"]


def test_the_schema_is_served(tiny: Running) -> None:
    schema = tiny.get("/openapi.json").json()
    assert {"/v1/completions", "/v1/chat/completions", "/health", "/tokenize"} <= schema["paths"].keys()


def test_what_is_kept_and_what_comes_goes_and_moves(folder: Path, tiny: Running) -> None:
    """Retention by request, and the events that show its priority, from an engine in a process of its own."""
    keep = {"token_range_retention_configs": [{"token_start": 0, "token_end": 64, "priority": 80}]}
    body = {"prompt": list(range(5, 75)), "max_tokens": 1, "kv_cache_retention_config": keep}
    config = KvCacheConfig(max_tokens=2048, event_buffer_max_size=20)
    with served_apart(folder, kv_cache_config=config) as running:
        assert running.post("/v1/completions", body).status_code == 200
        created, stored = (event["data"] for event in running.post("/kv_cache_events", None).json())
        assert created["type"] == "created"
        assert [block["priority"] for block in stored["blocks"]] == [80, 80]
        assert running.post("/kv_cache_events", None).json() == []
        (record,) = running.get("/perf_metrics").json()
        assert record["perf_metrics"]["kv_cache_metrics"] == {"cached_tokens": 0, "cache_miss": "no_entry"}
        for wrong, said in (
            ({"token_start": 0, "priority": 101}, "priority"),
            ({"token_start": 70}, "token_start=70, and the prompt has 70 tokens"),
            ({"token_start": 9, "token_end": 9}, "token_end=9 is not behind token_start=9"),
        ):
            asked = body | {"kv_cache_retention_config": {"token_range_retention_configs": [wrong]}}
            answer = running.post("/v1/completions", asked)
            assert answer.status_code == 400
            assert said in answer.json()["error"]["message"]
    refused = tiny.post("/kv_cache_events", None)
    assert refused.status_code == 400
    assert "event_buffer_max_size" in refused.json()["error"]["message"]
