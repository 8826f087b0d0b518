"""Packed weights from disk: the same outputs to the bit, and what is stale, damaged or unwritable is met in words."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace import LLM, ConfigError, SamplingParams
from headrace.core.config import BuildCacheConfig
from headrace.eval import tiny
from headrace.runner import build_cache

PROMPTS = [[5, 9, 11, 3, 7], list(range(3, 45))]
PARAMS = SamplingParams(max_tokens=8, end_id=-1, temperature=0.9, top_k=0, seed=3, logprobs=2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for name in ("llama", "qwen3-moe", "deepseek-v3"):
        folders[name] = tmp_path_factory.mktemp(name)
        with torch.no_grad():
            tiny.save(tiny.make(name), folders[name])
    return folders


@pytest.fixture(autouse=True)
def mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    # Tiny weights are worth a mapping here, where it is to be tested.
    monkeypatch.setattr("headrace.weights.packed_file._MAPPED", 1)


def outputs(folder: Path, **options: Any) -> list[Any]:
    settings = {"num_threads": 2, "kv_cache_config": {"max_tokens": 512}, "skip_tokenizer_init": True}
    with LLM(folder, **settings | options) as llm:
        return [
            (one.token_ids, one.logprobs)
            for out in llm.generate(PROMPTS, PARAMS, use_tqdm=False)
            for one in out.outputs
        ]


def cached(folder: Path, root: Path, **options: Any) -> list[Any]:
    return outputs(folder, enable_build_cache=BuildCacheConfig(cache_root=root), **options)


FORMS = [{"dtype": "float32"}, {"dtype": "bfloat16"}, *({"quant_config": {"quant_algo": a}} for a in ("int8", "int4"))]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen3-moe", "deepseek-v3"])
def test_a_start_from_disk_changes_no_bit(
    folders: dict[str, Path], name: str, form: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "headrace")
    plain = outputs(folders[name], **form)
    assert cached(folders[name], tmp_path, **form) == plain
    assert "is written" in caplog.text
    (record,) = tmp_path.iterdir()
    before = record.read_bytes()
    caplog.clear()
    assert cached(folders[name], tmp_path, **form) == plain
    assert f"build cache: {record}" in caplog.text
    assert "is written" not in caplog.text
    assert record.read_bytes() == before


def test_the_reference_operators_have_records_of_their_own(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(folders["llama"], tmp_path)
    monkeypatch.setenv("HEADRACE_OPS", "linear=reference,block_linear=reference")
    plain = outputs(folders["llama"])
    for _ in range(2):
        assert cached(folders["llama"], tmp_path) == plain
        assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_record_is_said_and_made_anew(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = cached(folders["llama"], tmp_path)
    (record,) = tmp_path.iterdir()
    whole = record.read_bytes()
    # In the last part: all the others have been filled by then.
    record.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    assert cached(folders["llama"], tmp_path) == plain
    assert "their checksum is another: damaged; the weights are packed again" in caplog.text
    assert record.read_bytes() == whole


def test_another_checkpoint_at_the_same_place_is_not_taken_for_it(folders: dict[str, Path], tmp_path: Path) -> None:
    source, root = tmp_path / "model", tmp_path / "cache"
    with torch.no_grad():
        tiny.save(tiny.make("llama"), source)
        first = cached(source, root)
        model = tiny.make("llama")
        for parameter in model.parameters():
            parameter.mul_(1.5)
        tiny.save(model, source)
    second = cached(source, root)
    assert second != first
    assert second == outputs(source)
    assert len(list(root.iterdir())) == 2


def test_another_build_of_the_package_has_records_of_its_own(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(folders["llama"], tmp_path)
    monkeypatch.setattr(build_cache, "_this_package", lambda: ["another"])
    cached(folders["llama"], tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_oldest_goes_when_there_are_too_many(folders: dict[str, Path], tmp_path: Path) -> None:
    limited = BuildCacheConfig(cache_root=tmp_path, max_records=2)
    forms = [{"dtype": "float32"}, {"dtype": "bfloat16"}, {"quant_config": {"quant_algo": "int8"}}]
    records: list[set[Path]] = []
    for age, form in enumerate(forms):
        outputs(folders["llama"], enable_build_cache=limited, **form)
        records.append(set(tmp_path.iterdir()))
        for path in records[-1] - (records[-2] if age else set()):
            os.utime(path, ns=(age, age))
        if age == 1:
            # Read: it is the youngest again.
            outputs(folders["llama"], enable_build_cache=limited, **forms[0])
    assert len(records[-1]) == 2
    assert records[0] < records[-1]


def test_a_disk_that_takes_nothing_costs_a_warning(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a file").touch()
    assert cached(folders["llama"], tmp_path / "a file" / "cache") == outputs(folders["llama"])
    assert "cannot be written" in caplog.text
    small = BuildCacheConfig(cache_root=tmp_path / "small", max_cache_storage_gb=1e-6)
    outputs(folders["llama"], enable_build_cache=small)
    assert "max_cache_storage_gb=1e-06" in caplog.text
    assert not (tmp_path / "small").exists()


def test_made_up_weights_are_not_kept(folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="load_format='dummy' reads no weights"):
        LLM(folders["llama"], load_format="dummy", enable_build_cache=True)
