"""Embeddings, labels, scores and rewards over HTTP: what the Python API gives, in the shapes that clients expect."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from serving_rig import CONFIG, NAME, TEMPLATE, VOCAB, Running, served, served_apart

from headrace import KvCacheConfig, PoolingParams
from parity.test_bert import make as make_bert
from tiny_text import write_tokenizer

TEXTS = ["the river runs", "a mill", "the river ran"]


def error_of(answer: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def model_folder(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    write_tokenizer(folder, VOCAB, TEMPLATE)
    return folder


def served_model(tmp_path_factory: pytest.TempPathFactory, **config: Any) -> Iterator[Running]:
    with served(model_folder(tmp_path_factory.mktemp("encode") / "model", **config), max_batch_size=8) as running:
        yield running
        running.idle()


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A model with one label."""
    config = {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "goes together"}}
    yield from served_model(tmp_path_factory, **config)


@pytest.fixture(scope="module")
def sorter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A model with three labels."""
    config = {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "a", "1": "b", "2": "c"}}
    yield from served_model(tmp_path_factory, **config)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A process reward model."""
    yield from served_model(tmp_path_factory, architectures=["Qwen2ForProcessRewardModel"], model_type="qwen2")


def expected(running: Running, prompts: Any, **params: Any) -> list[np.ndarray]:
    return [one.data for one in running.llm.encode(prompts, PoolingParams(**params), use_tqdm=False)]


@pytest.mark.parametrize("encoding", [None, "float", "base64"])
def test_embeddings_through_the_official_client(tiny: Running, encoding: str | None) -> None:
    more = {} if encoding is None else {"encoding_format": encoding}
    got = tiny.client().embeddings.create(model=NAME, input=TEXTS, **more)
    want = expected(tiny, TEXTS)
    assert (got.object, got.model) == ("list", NAME)
    assert [one.index for one in got.data] == [0, 1, 2]
    for one, vector in zip(got.data, want, strict=True):
        numbers = one.embedding
        if encoding == "base64":
            numbers = np.frombuffer(base64.b64decode(numbers), "<f4")
        assert np.array_equal(np.array(numbers, np.float32), vector)
        assert abs(np.linalg.norm(vector) - 1) < 1e-6
    assert got.usage.prompt_tokens == got.usage.total_tokens == sum(map(len, TEXTS))
    tiny.idle()


@pytest.mark.parametrize("given", ["ab", [70, 71], [[70, 71], [72]]])
def test_embeddings_of_every_form_of_input(tiny: Running, given: Any) -> None:
    many = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    body = {"input": given, "dimensions": 8, "pooling_type": "mean", "truncate_prompt_tokens": 1}
    got = tiny.post("/v1/embeddings", body).json()["data"]
    want = expected(tiny, many, dimensions=8, pooling_type="mean", truncate_prompt_tokens=1)
    assert [np.float32(one["embedding"]).tolist() for one in got] == [one.tolist() for one in want]


def test_classify_names_the_most_likely_label(sorter: Running) -> None:
    got = sorter.post("/v1/classify", {"input": TEXTS, "model": NAME}).json()
    assert got["object"] == "list"
    for one, chances in zip(got["data"], expected(sorter, TEXTS), strict=True):
        assert np.array_equal(np.float32(one["probs"]), chances)
        assert abs(sum(one["probs"]) - 1) < 1e-6
        assert one["label"] == "abc"[int(chances.argmax())]
        assert one["num_classes"] == 3
    raw = sorter.post("/v1/classify", {"input": "a mill", "use_activation": False}).json()["data"][0]["probs"]
    assert np.array_equal(np.float32(raw), expected(sorter, ["a mill"], use_activation=False)[0])


def test_scores_of_a_model_that_reads_both_texts(ranker: Running) -> None:
    pairs = [(TEXTS[0], TEXTS[1]), (TEXTS[0], TEXTS[2])]
    want = [float(one[0]) for one in expected(ranker, ["".join(pair) for pair in pairs])]
    got = ranker.post("/v1/score", {"text_1": TEXTS[0], "text_2": TEXTS[1:]}).json()
    assert [one["score"] for one in got["data"]] == want
    assert [one["object"] for one in got["data"]] == ["score", "score"]
    both = ranker.post("/v1/score", {"text_1": [TEXTS[0]] * 2, "text_2": TEXTS[1:]}).json()
    assert both["data"] == got["data"]
    assert got["usage"]["prompt_tokens"] == sum(len(a) + len(b) for a, b in pairs)


def test_scores_and_ranks_of_embeddings_are_their_cosines(tiny: Running) -> None:
    query, *documents = expected(tiny, ["the river runs", *TEXTS, "the river runs"])
    cosines = [float(query.astype(np.float64) @ document.astype(np.float64)) for document in documents]
    got = tiny.post("/v1/score", {"text_1": "the river runs", "text_2": [*TEXTS, TEXTS[0]]}).json()["data"]
    assert np.allclose([one["score"] for one in got], cosines, atol=1e-12)
    body = {"query": "the river runs", "documents": [*TEXTS, TEXTS[0]], "top_n": 3}
    ranked = tiny.post("/v1/rerank", body).json()["results"]
    assert [one["index"] for one in ranked] == sorted(range(4), key=lambda i: -got[i]["score"])[:3]
    # The first of two that are equal.
    assert [one["index"] for one in ranked[:2]] == [0, 3]
    assert [one["relevance_score"] for one in ranked] == [got[one["index"]]["score"] for one in ranked]
    assert [one["document"]["text"] for one in ranked] == [body["documents"][one["index"]] for one in ranked]
    bare = tiny.post("/v1/rerank", body | {"return_documents": False}).json()["results"]
    assert [set(one) for one in bare] == [{"index", "relevance_score"}] * 3


def test_pooling_gives_whatever_the_model_gives(judge: Running, tiny: Running, ranker: Running) -> None:
    steps = judge.post("/pooling", {"input": [[5, 9, 6, 9], [9]], "step_tag_id": 9}).json()["data"]
    want = expected(judge, [[5, 9, 6, 9], [9]], step_tag_id=9)
    assert [np.float32(one["data"]).tolist() for one in steps] == [rows.tolist() for rows in want]
    assert [len(one["data"]) for one in steps] == [2, 1]
    rows = tiny.post("/pooling", {"input": "ab", "pooling_type": "all", "normalize": False}).json()["data"][0]["data"]
    assert np.array_equal(np.float32(rows), expected(tiny, ["ab"], pooling_type="all", normalize=False)[0])
    packed = ranker.post("/pooling", {"input": "ab", "encoding_format": "base64"}).json()["data"][0]
    assert np.array_equal(np.frombuffer(base64.b64decode(packed["data"]), "<f4"), expected(ranker, ["ab"])[0])
    assert packed["object"] == "pooling"


@pytest.mark.parametrize(
    ("path", "body", "param", "word"),
    [
        ("/v1/embeddings", {}, "input", "required"),
        ("/v1/embeddings", {"input": []}, "input", "list of texts"),
        ("/v1/embeddings", {"input": ""}, "input", "empty"),
        ("/v1/embeddings", {"input": [320]}, "input", "320"),
        ("/v1/embeddings", {"input": "a" * 3000}, "input", "3000"),
        ("/v1/embeddings", {"input": "a", "dimensions": 33}, "dimensions", "32"),
        ("/v1/embeddings", {"input": "a", "dimensions": 0}, "dimensions", "greater"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, "encoding_format", "base64"),
        ("/v1/embeddings", {"input": "a", "pooling_type": "step"}, "pooling_type", "mean"),
        ("/v1/embeddings", {"input": "a", "stream": True}, "stream", "one piece"),
        ("/v1/embeddings", {"input": "a", "task": "embed"}, "task", "pooling_type"),
        ("/v1/embeddings", {"input": "a", "max_tokens": 2}, "max_tokens", "no field"),
        ("/v1/embeddings", {"messages": []}, "messages", "input"),
        ("/v1/classify", {"input": "a"}, "model", "/v1/embeddings"),
        ("/pooling", {"input": "a", "use_activation": False}, "use_activation", "embedding"),
        ("/pooling", {"input": "a", "pooling_type": "step"}, "pooling_type", "last"),
        ("/pooling", {"input": "a", "step_tag_id": 5}, "step_tag_id", "step"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_1", "3"),
        ("/v1/score", {"text_1": "a", "text_2": []}, "text_2", "list of texts"),
        ("/v1/score", {"text_1": "a", "text_2": ["a", ""]}, "text_2", "empty"),
        ("/v1/score", {"text_1": "a", "text_2": "b", "use_activation": True}, "use_activation", "embedding"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents", "at least 1"),
        ("/v1/rerank", {"query": "a", "documents": ["b"] * 513}, "documents", "512"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": 0}, "top_n", "greater"),
        ("/v1/rerank", {"query": "a", "documents": [5]}, "documents.0", "string"),
    ],
)
def test_what_is_wrong_is_named(tiny: Running, path: str, body: dict[str, Any], param: str, word: str) -> None:
    error = error_of(tiny.post(path, body))
    assert error["param"] == param
    assert word in error["message"]
    tiny.idle()


def test_a_model_that_does_not_generate_says_what_it_does(sorter: Running, judge: Running) -> None:
    for running, gives in ((sorter, "classification"), (judge, "step rewards")):
        for path, more in (("completions", {"prompt": "a"}), ("chat/completions", {"messages": [USER]})):
            error = error_of(running.post(f"/v1/{path}", {"max_tokens": 2, **more}))
            assert error["param"] == "model"
            assert f"gives {gives}" in error["message"]
            assert "/pooling" in error["message"]
        assert error_of(running.post("/v1/embeddings", {"input": "a"}))["param"] == "model"
    error = error_of(sorter.post("/v1/score", {"text_1": "a", "text_2": "b"}))
    assert "3 labels" in error["message"]
    assert "reward" in error_of(judge.post("/v1/rerank", {"query": "a", "documents": ["b"]}))["message"]
    assert "<extra_0>" in error_of(judge.post("/pooling", {"input": "a"}))["message"]


USER = {"role": "user", "content": "a"}


def test_an_encoder_reads_both_texts(tmp_path: Path) -> None:
    """Two kinds of token meet in one batch, and in another process."""
    make_bert(tmp_path, n_labels=1)
    texts = ["de", "abc", "f g h", "d"]
    with served_apart(tmp_path, load_format="auto", kv_cache_config=KvCacheConfig()) as apart:
        got = apart.post("/v1/rerank", {"query": "ab c", "documents": texts}).json()["results"]
        alone = [
            apart.post("/v1/score", {"text_1": "ab c", "text_2": text}).json()["data"][0]["score"] for text in texts
        ]
        assert {one["index"]: one["relevance_score"] for one in got} == dict(enumerate(alone))
        assert [one["relevance_score"] for one in got] == sorted(alone, reverse=True)
        assert len(set(alone)) == len(texts)
        label = apart.post("/v1/classify", {"input": "ab c"}).json()["data"][0]
        assert label["label"] == "LABEL_0"
        assert label["probs"] != alone[:1]
        error = error_of(apart.post("/v1/classify", {"input": "a " * 250}))
        assert error["param"] == "input"
        apart.idle()


def test_an_engine_process_gives_the_same_bytes(tiny: Running, folder: Path) -> None:
    bodies = {
        "/v1/embeddings": {"input": TEXTS, "encoding_format": "base64"},
        "/pooling": {"input": TEXTS, "pooling_type": "all", "encoding_format": "base64"},
        "/v1/rerank": {"query": TEXTS[0], "documents": TEXTS},
    }
    with served_apart(folder, max_num_tokens=5) as apart:
        for path, body in bodies.items():
            here, there = tiny.post(path, body).json(), apart.post(path, body).json()
            for name in ("data", "results"):
                assert here.get(name) == there.get(name), path
        assert error_of(apart.post("/v1/embeddings", {"input": [320]}))["param"] == "input"
        apart.idle()


def test_a_deadline_that_passes_is_said(serve: Any) -> None:
    with serve({"request_timeout": 0.001}, max_num_tokens=1) as running:
        error = error_of(running.post("/v1/embeddings", {"input": ["a" * 500] * 4}), 503)
        assert error["code"] == "timeout"
        running.idle()
