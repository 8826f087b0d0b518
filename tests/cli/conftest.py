"""A tiny model on disk with a chat template, and a way to run commands on it in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from headrace.cli.main import app
from tiny_text import write_tokenizer

VOCAB = 320
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "vocab_size": VOCAB,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "dtype": "float32",
}
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
# Weights are drawn at random, so that a model starts in no time.
TINY = ("--set", "load_format=dummy", "--set", "max_batch_size=8", "--threads", "1")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write_tokenizer(folder, VOCAB, TEMPLATE)
    return folder


@pytest.fixture
def command() -> Iterator[Callable[..., Any]]:
    """``command("generate", ..., input=...)``: the finished command, with exit_code, stdout and stderr."""
    threads = torch.get_num_threads()

    def run(*arguments: Any, input: str | None = None) -> Any:
        return CliRunner().invoke(app, [str(one) for one in arguments], input=input, catch_exceptions=False)

    yield run
    torch.set_num_threads(threads)
