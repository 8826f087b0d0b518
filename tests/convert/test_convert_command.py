"""``headrace convert`` as a command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from headrace.cli.main import app
from headrace.eval import tiny
from tiny_text import write_tokenizer

RUN = ("--max-tokens", 6, "--ignore-eos", "--threads", 1, "--kv-tokens", 512, "--json", "--logprobs", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    with torch.no_grad():
        model = tiny.make("qwen3")
        tiny.save(model, made)
    write_tokenizer(made, model.config.vocab_size)
    return made


@pytest.fixture
def command() -> Callable[..., Any]:
    threads = torch.get_num_threads()

    def run(*arguments: Any) -> Any:
        done = CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=False)
        torch.set_num_threads(threads)
        return done

    return run


def answer(done: Any) -> Any:
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)["outputs"]


@pytest.mark.slow
def test_a_converted_model_answers_as_the_one_rounded_at_load(command, folder, tmp_path):
    done = command("convert", folder, tmp_path / "out", "--to", "int8", "--threads", 1)
    assert done.exit_code == 0
    assert f"headrace chat {tmp_path / 'out'}" in done.stderr.replace("\n", "")
    ours = answer(command("generate", tmp_path / "out", "a prompt", *RUN))
    assert ours == answer(command("generate", folder, "a prompt", "--quantization", "int8", *RUN))
    assert ours != answer(command("generate", folder, "a prompt", *RUN))


@pytest.mark.slow
def test_packed_weights_are_what_the_next_start_reads(command, folder, tmp_path):
    packed = tmp_path / "packed"
    done = command("convert", folder, packed, "--to", "packed", "--quantization", "int8", "--threads", 1)
    assert done.exit_code == 0
    (record,) = packed.glob("*.packed")
    start = ("--quantization", "int8", "--set", f"enable_build_cache.cache_root={packed}", *RUN)
    before = record.stat()
    found = command("generate", folder, "a prompt", *start)
    assert answer(found) == answer(command("generate", folder, "a prompt", "--quantization", "int8", *RUN))
    # Reading marks a record as used; nothing else was written.
    assert [one.name for one in packed.iterdir()] == [record.name]
    assert record.stat().st_mtime_ns > before.st_mtime_ns
    assert record.stat().st_ino == before.st_ino


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--to", "awq"), "--to awq: there are hf, int8, int4, gguf, packed"),
        (("--to", "hf", "--form", "F32"), "--form is for --to gguf"),
        (("--to", "int8", "--dtype", "bfloat16"), "--dtype is for --to hf and packed"),
        (("--to", "gguf", "--quantization", "int8"), "--quantization is for --to packed"),
        (("--to", "gguf"), "the name must end in .gguf"),
    ],
)
def test_what_makes_no_sense_is_refused(command, folder, tmp_path, options, words):
    done = command("convert", folder, tmp_path / "out", *options)
    assert done.exit_code == 2
    assert words in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()
