"""Settings out of a file, options and ``--set``: order, types, and what is said of a wrong path."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.cli.settings import gather, merged
from headrace.core.config import LlmArgs
from headrace.core.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "extra.yaml"
    file.write_text(
        "max_batch_size: 3\nmax_num_tokens: 64\ndtype: float32\n"
        "kv_cache_config: {max_tokens: 512, enable_block_reuse: false}\n"
        "scheduler_config:\n  capacity_scheduler_policy: GUARANTEED_NO_EVICT\n"
    )
    return file


def test_set_goes_before_options_and_these_before_the_file(file: Path) -> None:
    options = {"max_num_tokens": 128, "kv_cache_config": {"max_tokens": 1024}, "max_seq_len": 99}
    sets = ["kv_cache_config.max_tokens=2048", "max_seq_len=100", "scheduler_config.max_queue_size=8"]
    args = LlmArgs.from_call("m", gather(file, options, sets))
    assert (args.max_batch_size, args.dtype) == (3, "float32")
    assert args.max_num_tokens == 128
    assert args.max_seq_len == 100
    assert args.kv_cache_config.max_tokens == 2048
    assert not args.kv_cache_config.enable_block_reuse
    assert args.scheduler_config.max_queue_size == 8
    assert args.scheduler_config.capacity_scheduler_policy.value == "GUARANTEED_NO_EVICT"


def test_the_last_of_two_assignments_counts() -> None:
    assert gather(None, {}, ["max_seq_len=1", "max_seq_len=2"]) == {"max_seq_len": 2}


@pytest.mark.parametrize(
    ("text", "value"),
    [("5", 5), ("true", True), ("0.5", 0.5), ("word", "word"), ("", None), ("{max_tokens: 5}", {"max_tokens": 5})],
)
def test_values_are_typed_by_yaml(text: str, value: object) -> None:
    assert gather(None, {}, [f"kv_cache_config={text}"]) == {"kv_cache_config": value}


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("max_batchsize", "'max_batch_size'"),
        ("kv_cache_config.max_token", "'kv_cache_config.max_tokens'"),
        ("kv_cach_config.max_tokens", "'kv_cache_config.max_tokens'"),
        ("max_tokens", "'kv_cache_config.max_tokens'"),
        ("max_queue_size", "'scheduler_config.max_queue_size'"),
        ("speculative_config.max_drafts", "speculative_config.max_draft_len"),
        ("zzz", "Known: "),
        ("model", "Known: "),
    ],
)
def test_an_unknown_path_names_the_nearest(path: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no setting") as caught:
        gather(None, {}, [f"{path}=1"])
    assert hint in str(caught.value)
    assert str(caught.value).startswith(f"--set {path}=1: ")
    file = tmp_path / "wrong.yaml"
    group, _, name = path.rpartition(".")
    file.write_text(f"{group}: {{{name}: 1}}\n" if group else f"{name}: 1\n")
    with pytest.raises(ConfigError) as caught:
        gather(file, {}, [])
    assert hint in str(caught.value)
    assert str(caught.value).startswith(f"--config {file}: ")


@pytest.mark.parametrize("setting", ["nonsense", "=1", "a..b=1", "max_seq_len=[", "dtype.x=1"])
def test_a_malformed_assignment_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"--set|cannot read"):
        gather(None, {"dtype": "float32"}, [setting])


@pytest.mark.parametrize("content", ["- a\n", "5\n", "a: [\n", "1: 2\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        gather(file, {}, [])


def test_a_missing_or_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        gather(tmp_path / "none.yaml", {}, [])
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert gather(tmp_path / "empty.yaml", {}, []) == {}


def test_what_this_version_lacks_is_left_to_the_engine_to_refuse() -> None:
    settings = gather(None, {}, ["cuda_graph_config={enable_padding: true}", "tensor_parallel_size=2"])
    with pytest.raises(ConfigError, match=r"graph capture|more than one rank"):
        LlmArgs.from_call("m", settings)


def test_settings_are_merged_group_by_group() -> None:
    below = {"a": 1, "group": {"x": 1, "y": 2}}
    assert merged(below, {"group": {"y": 3}, "b": 4}) == {"a": 1, "group": {"x": 1, "y": 3}, "b": 4}
    assert merged(below, {"group": 5}) == {"a": 1, "group": 5}
