"""The commands themselves, on a tiny model in this process and on the built-in model in one of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import TINY

Command = Callable[..., Any]
HEADRACE = (sys.executable, "-m", "headrace.cli.entry")


def _lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_help_is_quick_and_loads_no_torch() -> None:
    code = "import sys; from headrace.cli.main import app; app(['--help'], standalone_mode=False)"
    shown = subprocess.run(
        [sys.executable, "-c", f"{code}; print('torch' in sys.modules)"], capture_output=True, text=True
    )
    assert shown.stdout.endswith("False\n")
    for name in ("generate", "chat", "bench", "features", "doctor"):
        assert name in shown.stdout


def test_generate_writes_answers_to_stdout_and_the_rest_to_stderr(command: Command, tiny_folder: Path) -> None:
    done = command("generate", tiny_folder, "one prompt", "--max-tokens", 5, "--ignore-eos", *TINY)
    assert done.exit_code == 0
    assert done.stdout.endswith("\n")
    assert "tokens/s" not in done.stdout
    for said in ("load weights", "memory: weights", "is ready after", "5 tokens in", "first token after"):
        assert said in done.stderr


def test_quiet_says_nothing_but_the_answer(command: Command, tiny_folder: Path) -> None:
    arguments = ("generate", tiny_folder, "one prompt", "--max-tokens", 5, "--ignore-eos", *TINY)
    quiet = command(*arguments, "--quiet")
    assert quiet.stderr == ""
    assert quiet.stdout == command(*arguments, "--no-stream").stdout


def test_json_lines_carry_what_was_asked_for(command: Command, tiny_folder: Path) -> None:
    prompts = ("first prompt", "second prompt")
    options = ("--json", "--max-tokens", 4, "--ignore-eos", "--logprobs", 2, "--n", 2, "--temperature", 1, "--seed", 7)
    done = command("generate", tiny_folder, *prompts, *options, *TINY)
    rows = {row["prompt"]: row for row in _lines(done.stdout)}
    assert set(rows) == set(prompts)
    for row in rows.values():
        assert row["seed"] == 7
        assert row["error"] is None
        assert row["prompt_tokens"] > 0
        assert len(row["outputs"]) == 2
        for output in row["outputs"]:
            assert len(output["token_ids"]) == len(output["logprobs"]) == 4
            assert output["finish_reason"] == "length"


def test_several_prompts_give_what_each_gives_alone(command: Command, tiny_folder: Path) -> None:
    def texts(*prompts: str) -> dict[str, str]:
        done = command("generate", tiny_folder, *prompts, "--json", "--max-tokens", 6, "--ignore-eos", *TINY)
        return {row["prompt"]: row["outputs"][0]["token_ids"] for row in _lines(done.stdout)}

    together = texts("one prompt", "another prompt")
    assert together == texts("one prompt") | texts("another prompt")


def test_the_chat_template_is_used_unless_raw(command: Command, tiny_folder: Path) -> None:
    def prompt_tokens(*options: str) -> int:
        done = command("generate", tiny_folder, "hi there", "--json", "--max-tokens", 1, *options, *TINY)
        return _lines(done.stdout)[0]["prompt_tokens"]

    # One token a byte: the template adds "<user>", "\n" and "<assistant>", and begins no text of its own.
    assert prompt_tokens("--chat") == prompt_tokens() == len("<user>hi there\n<assistant>")
    assert prompt_tokens("--system", "be kind") == len("<system>be kind\n<user>hi there\n<assistant>")
    assert prompt_tokens("--raw") == len("hi there")


def test_prompts_come_from_a_file_or_a_pipe(command: Command, tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\ntwo\n")
    options = ("--json", "--max-tokens", 1, *TINY)
    done = command("generate", tiny_folder, "--prompt-file", file, *options)
    assert {row["prompt"] for row in _lines(done.stdout)} == {"one", "two"}
    done = command("generate", tiny_folder, *options, input="from a\npipe\n")
    assert [row["prompt"] for row in _lines(done.stdout)] == ["from a\npipe"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--set", "max_batchsize=3"), "max_batch_size"),
        (("--set", "nonsense"), "name=value"),
        (("--set", "kv_cache_config.max_token=3"), "max_tokens"),
        (("--set", "dtype=float32", "--set", "dtype.x=1"), "has no parts"),
        (("--set", "tensor_parallel_size=2"), "more than one rank"),
        (("--speculative", "magic"), "ngram, suffix, draft-model"),
        (("--speculative", "draft-model"), "--draft-model PATH"),
        (("--speculative", "ngram", "--draft-model", "x"), "--draft-model PATH"),
        (("--speculative", "ngram", "--draft-len", "0"), "max_draft_len"),
        (("--temperature", "-1"), "temperature"),
        (("--top-p", "1.5"), "top_p"),
        (("--n", "2"), "greedy"),
        (("--embedding-bias", "{1: ["), "YAML"),
        (("--system", "x", "--raw"), "chat template"),
    ],
)
def test_wrong_options_end_with_one_line_and_status_2(
    command: Command, tiny_folder: Path, options: tuple[str, ...], said: str
) -> None:
    done = command("generate", tiny_folder, "a prompt", *TINY, *options, "--quiet")
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
    assert said in done.stderr


def test_a_wrong_model_names_the_right_one(command: Command) -> None:
    done = command("generate", "smollm", "a prompt")
    assert done.exit_code == 2
    assert "smollm2" in done.stderr


def test_debug_shows_the_traceback(command: Command) -> None:
    with pytest.raises(Exception, match="smollm2"):
        command("--debug", "generate", "smollm", "a prompt")


def test_a_prompt_that_is_too_long_fails_before_anything_runs(command: Command, tiny_folder: Path) -> None:
    done = command("generate", tiny_folder, "x" * 50, "--max-seq-len", 32, *TINY, "--quiet")
    assert done.exit_code == 2
    assert "32" in done.stderr


def test_chat_remembers_and_reuses(command: Command, tiny_folder: Path, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    commands = (
        f"/save {saved}",
        "/reset",
        "/system be kind",
        "third",
        f"/save {saved}.2",
        "/nothing",
        "/exit",
        "never",
    )
    typed = "\n".join(("hello", "second \\", "half", *commands))
    done = command("chat", tiny_folder, "--max-tokens", 4, "--ignore-eos", *TINY, input=typed)
    assert done.exit_code == 0
    first = json.loads(saved.read_text())["messages"]
    assert [message["role"] for message in first] == ["user", "assistant", "user", "assistant"]
    assert [message["content"] for message in first[::2]] == ["hello", "second \nhalf"]
    again = json.loads(Path(f"{saved}.2").read_text())["messages"]
    assert [message["role"] for message in again] == ["system", "user", "assistant"]
    assert "no command /nothing" in done.stderr
    assert "prompt tokens from the cache" in done.stderr


def test_chat_goes_on_after_an_answer_that_does_not_fit(command: Command, tiny_folder: Path) -> None:
    typed = f"hi\n{'x' * 100}\nhi\n"
    options = ("--max-tokens", 4, "--ignore-eos", "--max-seq-len", 96)
    done = command("chat", tiny_folder, *options, *TINY, input=typed)
    assert done.exit_code == 0
    assert done.stderr.count("4 tokens in") == 2
    assert "/reset" in done.stderr


@pytest.mark.parametrize("kind", ["throughput", "latency"])
def test_bench_reports_rates_next_to_the_roofline(command: Command, tiny_folder: Path, kind: str) -> None:
    sizes = ("--requests", 3, "--prompt-len", 40, "--output-len", 5)
    done = command("bench", kind, tiny_folder, *sizes, *TINY, "--json")
    document = json.loads(done.stdout)
    report, roofline = document["report"], document["roofline"]
    assert (report["requests"], report["prompt_tokens"], report["output_tokens"]) == (3, 120, 15)
    assert report["cached_tokens"] == 0
    assert 0 < report["decode_rate"] < roofline["tokens_per_second"]
    # Two layers of one KV head of 16, keys and values, in float32.
    assert roofline["kv_bytes_per_token"] == pytest.approx(2 * 2 * 16 * 4, rel=0.02)
    shown = command("bench", kind, tiny_folder, *sizes, *TINY)
    for word in ("first token", "next token", "roofline", "tokens/s"):
        assert word in shown.stdout


def test_features_names_the_model_and_every_feature(command: Command, tiny_folder: Path) -> None:
    document = json.loads(command("features", "--json").stdout)
    assert document["model"] is None
    assert {"batching", "ngram"} < {row["name"] for row in document["features"]}
    shown = command("features", tiny_folder)
    assert shown.exit_code == 2, "a folder without weights is not a checkpoint"


def test_doctor_prints_a_report(command: Command) -> None:
    document = json.loads(command("doctor", "--json", "--no-measure").stdout)
    assert document["machine"]["allowed_cpus"] == len(os.sched_getaffinity(0))
    assert document["torch"]["version"]
    assert document["bandwidth"] == {}
    shown = command("doctor", "--no-measure").stdout
    assert "not measured" in shown
    assert "What would be faster" in shown


def _endless(tiny_folder: Path) -> list[str]:
    options = ("--max-tokens", "16000", "--ignore-eos", "--quiet", *TINY)
    return [*HEADRACE, "generate", str(tiny_folder), "a prompt", *options]


def test_ctrl_c_cancels_and_ends_with_130(tiny_folder: Path) -> None:
    with subprocess.Popen(_endless(tiny_folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.read(1), "the first text has come"
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert said == "interrupted\n"


@pytest.mark.real
def test_the_built_in_model_answers(command: Command) -> None:
    """How soon is for bench/start.py to say."""
    question = "What is the capital of France?"
    done = command("generate", "smollm2", question, "--threads", "1", "--max-tokens", "16")
    assert done.stdout == "The capital of France is Paris.\n"
    assert re.search(r"8 tokens in .* tokens/s", done.stderr)
