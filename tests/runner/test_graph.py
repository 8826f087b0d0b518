"""Recorded decode steps: nothing of torch in them, the same bits as operator by operator, whatever the sizes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from headrace import LLM, ConfigError, CudaGraphConfig, NGramDecodingConfig, SamplingParams
from headrace.eval import tiny
from headrace.ops.native import core

pytestmark = pytest.mark.skipif(not core.is_available(), reason=f"no native core: {core.reason()}")

VARIANTS = (
    "llama", "mistral-window-40-odd-mqa", "qwen2", "qwen3", "phi3-longrope-long", "nemotron", "exaone4-window-40-odd",
    "gemma3-untied-window-40", "decilm", "deepseek-v3",
)  # fmt: skip
"""One for each architecture, by ``eval.tiny_variants``."""
PROMPTS = [[5, 6, 7] * 8, [9] * 40, list(range(20, 95)), [3]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def make(variant: str) -> Path:
        with torch.no_grad():
            return tiny.save(tiny.make(variant), tmp_path_factory.mktemp(variant))

    return make


def run(folder: Path, **args: Any) -> tuple[list[Any], dict[str, int], dict[str, Any]]:
    """(tokens and logprobs of each request, witnesses, effective configuration)."""
    with LLM(folder, skip_tokenizer_init=True, num_threads=1, **args) as llm:
        requests = [
            llm.generate_async(prompt, SamplingParams(max_tokens=5 + 4 * i, end_id=-1, logprobs=0, detokenize=False))
            for i, prompt in enumerate(PROMPTS)
        ]
        outputs = [request.result(timeout=60).outputs[0] for request in requests]
        seen = [(one.token_ids, [entry[t].logprob for entry, t in zip(one.logprobs, one.token_ids, strict=True)])
                for one in outputs]  # fmt: skip
        return seen, llm.get_stats()[-1]["witnesses"], llm.effective_config


class _ViewsOnly(TorchDispatchMode):
    """Lets torch look at memory in another way, and nothing else."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        assert not func._schema.is_mutable, f"{func} runs in torch"
        assert _memory(result) == _memory(args[0]), f"{func} runs in torch"
        return result


def _memory(x: torch.Tensor) -> int:
    return x.untyped_storage().data_ptr()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_recording_is_all_native_and_replays_the_same_bits(folder, variant, dtype, monkeypatch) -> None:
    from headrace.ops.native.record import Recorder

    recording = Recorder.recording

    @contextmanager
    def watched(self: Recorder, n_tokens: int) -> Iterator[None]:
        with recording(self, n_tokens), _ViewsOnly():
            yield

    monkeypatch.setattr(Recorder, "recording", watched)
    plain, witnesses, _ = run(folder(variant), dtype=dtype, cuda_graph_config=None)
    assert witnesses.get("graph_replays", 0) == 0
    replayed, witnesses, _ = run(folder(variant), dtype=dtype)
    assert replayed == plain
    assert witnesses["graph_captures"] > 0
    assert witnesses["graph_replays"] > witnesses["graph_captures"]


@pytest.mark.parametrize(
    "config",
    [
        CudaGraphConfig(batch_sizes=(64,)),
        CudaGraphConfig(batch_sizes=(1, 3)),
        CudaGraphConfig(max_batch_size=2),
        CudaGraphConfig(batch_sizes=(1, 2, 3, 4, 8), enable_padding=False),
    ],
)
@pytest.mark.parametrize("drafts", [None, NGramDecodingConfig(max_draft_len=3)])
def test_sizes_change_no_bit(folder, config, drafts) -> None:
    plain, _, _ = run(folder("llama"), cuda_graph_config=None)
    replayed, witnesses, effective = run(folder("llama"), cuda_graph_config=config, speculative_config=drafts)
    assert replayed == plain
    assert witnesses["graph_replays"] > 0
    assert effective["graph_sizes"] == list(config.sizes(64 * (4 if drafts else 1)))


def test_sizes_are_those_of_the_field_and_end_at_the_most_rows() -> None:
    assert CudaGraphConfig().sizes(20) == (1, 2, 4, 8, 16, 20)
    assert CudaGraphConfig().sizes(300)[-3:] == (128, 256, 300)
    assert CudaGraphConfig(max_batch_size=3).sizes(64) == (1, 2, 3)
    assert CudaGraphConfig(batch_sizes=(7, 3, 100)).sizes(64) == (3, 7, 64)


def test_what_cannot_be_recorded_is_refused_where_it_was_asked_for(folder, monkeypatch) -> None:
    monkeypatch.setenv("HEADRACE_OPS", "silu_mul=reference")
    _, witnesses, effective = run(folder("llama"))
    assert (witnesses.get("graph_replays", 0), effective["graph_sizes"]) == (0, [])
    with pytest.raises(ConfigError, match="silu_mul are not"):
        LLM(folder("llama"), skip_tokenizer_init=True, cuda_graph_config=CudaGraphConfig())


_FIRST_DECODE = """
import sys
from headrace import LLM, SamplingParams
with LLM(sys.argv[1], skip_tokenizer_init=True, num_threads=1) as llm:
    llm.generate([5, 6, 7], SamplingParams(max_tokens=4, end_id=-1, detokenize=False))
    assert llm.get_stats()[-1]["witnesses"]["graph_captures"] > 0
print(sorted(name for name in sys.modules if name in ("torch._dynamo", "sympy")))
"""


def test_the_first_decode_imports_no_compiler(folder: Any) -> None:
    """It takes a second, in the middle of somebody's stream."""
    done = subprocess.run([sys.executable, "-c", _FIRST_DECODE, str(folder("llama"))], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
