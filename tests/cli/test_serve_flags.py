"""The flags of ``headrace serve``: names people know, both spellings, and what is said of those that are not here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import headrace.cli.serve
from headrace.cli.absent import FLAGS
from headrace.core.errors import ConfigError
from headrace.tokenizer.load import load_tokenizer

Command = Callable[..., Any]


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch, command: Command) -> Callable[..., dict[str, Any]]:
    """``launch(*flags)``: what the engine would be built from; nothing is built."""

    def run(*flags: Any) -> dict[str, Any]:
        got: dict[str, Any] = {}

        @contextmanager
        def launched(model: str, arguments: dict[str, Any], *_: Any, **__: Any) -> Iterator[Any]:
            got.update(arguments, model=model)
            raise ConfigError("far enough")
            yield

        monkeypatch.setattr(headrace.cli.serve, "launched", launched)
        done = command("serve", "m", *flags)
        assert "far enough" in done.stderr, done.stderr
        return got

    return run


def test_both_spellings_and_the_names_of_the_reference(launch: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    file = tmp_path / "extra.yaml"
    file.write_text("max_num_tokens: 32\nperf_metrics_max_requests: 5\n")
    got = launch(
        *("--max_batch_size", 3, "--max-seq-len=64", "--kv_cache_dtype", "float32", "--no-enable-chunked-prefill"),
        *("--extra_llm_api_options", file, "--served_model_name", "x", "--set", "kv_cache_config.max_tokens=96"),
    )
    assert got == {
        "model": "m",
        "max_batch_size": 3,
        "max_seq_len": 64,
        "max_num_tokens": 32,
        "enable_chunked_prefill": False,
        "kv_cache_config": {"dtype": "float32", "max_tokens": 96},
        "scheduler_config": {"max_queue_size": 1024},
    }


def test_flags_that_only_this_command_has(launch: Callable[..., dict[str, Any]]) -> None:
    got = launch(
        *("--logits-processor", "a=m:x", "--logits-processor", "b=m.n:y", "--batched-logits-processor", "m:z"),
        *("--reasoning-parser", "auto", "--lora_modules", "mine=/a=b", "--lora-modules", "yours=/c"),
        *("--set", "lora_config.max_loras=3"),
    )
    assert got["lora_config"] == {"max_loras": 3, "lora_modules": {"mine": "/a=b", "yours": "/c"}}
    assert got["logits_processors"] == {"a": "m:x", "b": "m.n:y"}
    assert (got["batched_logits_processor"], got["reasoning_parser"]) == ("m:z", "auto")


def test_a_queue_limit_of_ones_own(launch: Callable[..., dict[str, Any]]) -> None:
    assert launch("--set", "scheduler_config.max_queue_size=2")["scheduler_config"] == {"max_queue_size": 2}


@pytest.mark.parametrize("row", FLAGS, ids=lambda row: row.flag)
def test_an_absent_flag_is_refused_with_the_way_out(command: Command, row: Any) -> None:
    for flag in (row.flag, *row.also, row.flag[:2] + row.flag[2:].replace("-", "_")):
        done = command("serve", "m", flag, *([] if row.is_switch else ["7"]))
        assert done.exit_code == 2
        assert row.reason in " ".join(done.stderr.split())
        assert done.stderr.startswith(f"error: {row.flag}")


@pytest.mark.parametrize("row", [row for row in FLAGS if row.neutral or row.is_switch], ids=lambda row: row.flag)
def test_a_value_that_asks_for_nothing_is_taken(launch: Callable[..., dict[str, Any]], row: Any) -> None:
    values = [(f"--no-{row.flag[2:]}",)] if row.is_switch else [(row.flag, value) for value in row.neutral]
    for value in values:
        assert launch(*value).keys() == {"model", "scheduler_config"}


def test_absent_flags_are_not_in_the_help(command: Command) -> None:
    shown = command("serve", "--help").stdout
    assert "--max-batch-size" in shown
    assert "--tp-size" not in shown


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--tp_siz", "2"), "No such option"),
        (("--draft-len", "3"), "--speculative"),
        (("--set", "perf_metrics_max_requests=-1"), "perf_metrics_max_requests"),
        (("--chat-template", "nowhere.jinja"), "nowhere.jinja"),
        (("--port", "70000"), "65535"),
        (("--logits-processor", "m:x"), "NAME=module:object"),
        (("--lora-modules", "/a/folder"), "NAME=folder"),
        (("--lora-modules", "a=/b", "--lora-modules", "a=/c"), "'a' is given twice"),
        (("--api-key", "a", "--api-key", " "), "empty key"),
        (("--config", "nowhere.yaml"), "nowhere.yaml"),
    ],
)
def test_wrong_flags_end_before_anything_starts(command: Command, flags: tuple[str, ...], said: str) -> None:
    done = command("serve", "m", *flags)
    assert done.exit_code == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_chat_template_of_the_operators(tiny_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_folder)
    messages = [{"role": "user", "content": "hi"}]
    file = tmp_path / "own.jinja"
    file.write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    assert tokenizer.chat(messages) == "<user>hi\n<assistant>"
    headrace.cli.serve._use(headrace.cli.serve._template(str(file)), tokenizer)
    assert tokenizer.chat(messages) == "[hi]"
    headrace.cli.serve._use(headrace.cli.serve._template("{{ messages[0].role }}"), tokenizer)
    assert tokenizer.chat(messages) == "user"
    with pytest.raises(ConfigError, match="--chat-template"):
        headrace.cli.serve._use("{% for %}", tokenizer)
    with pytest.raises(ConfigError, match="without a tokenizer"):
        headrace.cli.serve._use("{{ x }}", None)
