"""The times and counts that a finished request carries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headrace import LLM, KvCacheConfig, NGramDecodingConfig, SamplingParams

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "vocab_size": 64,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "dtype": "float32",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def make(folder: Path, **options: Any) -> LLM:
    cache = KvCacheConfig(max_tokens=1024)
    return LLM(folder, load_format="dummy", skip_tokenizer_init=True, num_threads=1, kv_cache_config=cache, **options)


def test_a_request_that_waits_is_scheduled_later(folder: Path) -> None:
    with make(folder, max_batch_size=1) as llm:
        params = SamplingParams(max_tokens=20, end_id=-1)
        outputs = llm.generate([[5, 6], [7, 8]], params, use_tqdm=False)
        first, second = (output.outputs[0].request_perf_metrics for output in outputs)
    for one in (first, second):
        times = (one.arrival_time, one.first_scheduled_time, one.first_token_time, one.last_token_time)
        assert list(times) == sorted(times)
        assert (one.draft_tokens, one.accepted_draft_tokens) == (0, 0)
    # With one place and two steps in flight the second may be planned when the first has its last token on the way.
    assert second.first_scheduled_time > first.first_token_time


def test_a_newcomer_changes_nothing_in_the_times_of_who_runs(folder: Path) -> None:
    with make(folder) as llm:
        params = SamplingParams(max_tokens=200, end_id=-1)
        running = llm.generate_async([5, 6], params, streaming=True)
        next(iter(running))
        late = llm.generate_async([7, 8], SamplingParams(max_tokens=2, end_id=-1)).result(20)
        first, second = (one.result(20).outputs[0].request_perf_metrics for one in (running, late))
    assert first.last_token_time > second.first_token_time, "they have not run together"
    assert first.first_scheduled_time < first.first_token_time < second.first_scheduled_time


def test_drafts_are_counted_for_each_request(folder: Path) -> None:
    with make(folder, speculative_config=NGramDecodingConfig(max_draft_len=3)) as llm:
        params = SamplingParams(max_tokens=100, end_id=-1)
        outputs = llm.generate([[5, 6], [7, 8, 9]], params, use_tqdm=False)
        each = [output.outputs[0].request_perf_metrics for output in outputs]
        witnesses = llm.get_stats()[-1]["witnesses"]
    assert all(0 < one.accepted_draft_tokens <= one.draft_tokens for one in each)
    assert sum(one.accepted_draft_tokens for one in each) <= witnesses["drafts_accepted"]
    assert sum(one.draft_tokens for one in each) <= witnesses["drafts_proposed"]
    assert sum(one.accepted_draft_tokens for one in each) > 50
