"""Options: every sampling field has one, and each becomes the value it stands for."""

from __future__ import annotations

from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from headrace.cli.options import sampling_fields, split_model, with_engine_options, with_sampling_options
from headrace.core.config import LlmArgs
from headrace.core.features import MISSING_SAMPLING
from headrace.core.sampling_params import SamplingParams
from headrace.core.speculative import DraftTargetDecodingConfig, SADecodingConfig


def _parsed(*arguments: str) -> dict[str, Any]:
    """What a command gets for these arguments."""
    got: dict[str, Any] = {}

    @with_engine_options
    @with_sampling_options
    def command(*, sampling: dict[str, Any], engine: dict[str, Any]) -> None:
        """Records what it gets."""
        got.update(sampling=sampling, engine=engine)

    app = typer.Typer()
    app.command()(command)
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return got


def test_nothing_given_is_nothing_set() -> None:
    assert _parsed() == {"sampling": {}, "engine": {}}


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (("--max-tokens", "7"), "max_tokens", 7),
        (("--temperature", "0.5"), "temperature", 0.5),
        (("--ignore-eos",), "ignore_eos", True),
        (("--no-skip-special-tokens",), "skip_special_tokens", False),
        (("--stop", "a b", "--stop", "c"), "stop", ("a b", "c")),
        (("--stop-token-ids", "3", "--stop-token-ids", "4"), "stop_token_ids", (3, 4)),
        (("--embedding-bias", "{5: 1.5}"), "embedding_bias", {5: 1.5}),
        (("--bad-token-ids", "[1, [2, 3]]"), "bad_token_ids", ((1,), (2, 3))),
        (("--logprobs-mode", "processed"), "logprobs_mode", "processed"),
        (("--seed", str((1 << 64) - 1)), "seed", (1 << 64) - 1),
    ],
)
def test_an_option_becomes_the_value_of_its_field(arguments: tuple[str, ...], field: str, value: Any) -> None:
    given = _parsed(*arguments)["sampling"]
    assert set(given) == {field}
    assert getattr(SamplingParams(**given), field) == value


def test_every_field_that_works_in_a_terminal_has_an_option() -> None:
    missing = {row.option for row in MISSING_SAMPLING}
    left_out = set(SamplingParams.model_fields) - set(sampling_fields()) - missing
    assert left_out == {
        *("apply_batched_logits_processor", "logits_processor"),  # functions
        *("add_special_tokens", "detokenize", "exclude_input_from_output", "pad_id", "return_perf_metrics"),
        "spaces_between_special_tokens",
    }


def test_engine_options_are_arguments_of_the_engine() -> None:
    plain = ("--dtype", "float32", "--max-batch-size", "3", "--max-num-tokens", "64", "--max-seq-len", "128")
    more = ("--kv-tokens", "256", "--threads", "2", "--speculative", "ngram", "--draft-len", "5")
    given = _parsed(*plain, *more, "--set", "kv_cache_config.enable_block_reuse=false", "--set", "max_batch_size=4")
    args = LlmArgs.from_call("m", given["engine"])
    assert (args.dtype, args.max_batch_size, args.max_num_tokens, args.max_seq_len) == ("float32", 4, 64, 128)
    assert args.kv_cache_config.max_tokens == 256
    assert not args.kv_cache_config.enable_block_reuse
    assert args.num_threads == 2
    assert args.speculative_config is not None
    assert args.speculative_config.max_draft_len == 5


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--speculative", "suffix"), SADecodingConfig(max_draft_len=4)),
        (("--draft-model", "d"), DraftTargetDecodingConfig(max_draft_len=4, speculative_model="d")),
        (
            ("--speculative", "draft-model", "--draft-model", "d", "--draft-len", "2"),
            DraftTargetDecodingConfig(max_draft_len=2, speculative_model="d"),
        ),
    ],
)
def test_ways_to_draft(options: tuple[str, ...], expected: object) -> None:
    assert LlmArgs.from_call("m", _parsed(*options)["engine"]).speculative_config == expected


@pytest.mark.parametrize(
    ("words", "model", "expected"),
    [
        ([], None, ("smollm2", [])),
        (["smollm2"], None, ("smollm2", [])),
        (["a prompt"], None, ("smollm2", ["a prompt"])),
        (["org/name", "a prompt", "b"], None, ("org/name", ["a prompt", "b"])),
        (["word"], "org/name", ("org/name", ["word"])),
    ],
)
def test_the_first_word_is_the_model(words: list[str], model: str | None, expected: tuple[str, list[str]]) -> None:
    assert split_model(words, model) == expected
