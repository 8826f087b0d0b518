"""Safetensors folders: what is read equals what was written, and damage is named."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from headrace.core.errors import CheckpointError, ModelError
from headrace.weights.checkpoint import expect, open_checkpoint
from headrace.weights.dummy import write_safetensors
from headrace.weights.files import DataFile

CONFIG = {"model_type": "llama", "hidden_size": 8}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn)


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {f"a.{dtype}": torch.randn(5, 3, generator=generator).to(dtype) for dtype in DTYPES}
    return tensors | {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 4), "cube": torch.arange(24.0).view(2, 3, 4)}


def same_bytes(left: torch.Tensor, right: torch.Tensor) -> bool:
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return torch.equal(left.reshape(-1).view(torch.uint8), right.contiguous().reshape(-1).view(torch.uint8))


@pytest.mark.parametrize("shard_bytes", [None, 1, 100])
def test_tensors_come_back_bit_for_bit(tmp_path: Path, shard_bytes: int | None) -> None:
    tensors = some_tensors()
    checkpoint = open_checkpoint(write_safetensors(tmp_path, CONFIG, tensors, shard_bytes))
    assert sorted(checkpoint.names()) == sorted(tensors)
    assert checkpoint.config() == CONFIG
    assert checkpoint.generation_config() == {}
    assert checkpoint.nbytes() == sum(tensor.nbytes for tensor in tensors.values())
    for name, tensor in tensors.items():
        assert checkpoint.shape(name) == tuple(tensor.shape)
        assert checkpoint.dtype(name) == tensor.dtype
        assert same_bytes(checkpoint.tensor(name), tensor)
        assert checkpoint.file_of(name).is_file()
    checkpoint.close()
    with pytest.raises(ValueError, match="closed"):
        checkpoint.tensor("cube")


def test_names_go_through_each_shard_once(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_safetensors(tmp_path, CONFIG, some_tensors(), shard_bytes=50))
    files = [checkpoint.file_of(name) for name in checkpoint.names()]
    assert len(set(files)) > 3
    assert len(set(files)) == 1 + sum(before != after for before, after in itertools.pairwise(files))


def test_read_into_converts_in_chunks_and_leaves_neighbours_alone(tmp_path: Path) -> None:
    tensor = torch.randn(3000, 700, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    checkpoint = open_checkpoint(write_safetensors(tmp_path, CONFIG, {"w": tensor}))
    for dtype in (torch.bfloat16, torch.float32, torch.float16):
        fused = torch.full((3002, 700), 7.0, dtype=dtype)
        checkpoint.read_into("w", fused[1:-1])
        assert torch.equal(fused[1:-1], tensor.to(dtype))
        assert (fused[0] == 7).all()
        assert (fused[-1] == 7).all()


def test_converting_leaves_torchs_threads_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(write_safetensors(tmp_path, CONFIG, {"w": torch.ones(64, 64)}))
    inside = []
    read = DataFile.read_into

    def spy(*args: object) -> None:
        inside.append(torch.get_num_threads())
        read(*args)

    monkeypatch.setattr(DataFile, "read_into", spy)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        checkpoint.read_into("w", torch.empty(64, 64, dtype=torch.bfloat16))
        assert inside == [1]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_read_into_refuses_other_shapes_and_strides(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_safetensors(tmp_path, CONFIG, {"w": torch.ones(4, 6)}))
    with pytest.raises(CheckpointError, match=r"'w': expected shape \[6, 4\], found \[4, 6\]"):
        checkpoint.read_into("w", torch.empty(6, 4))
    with pytest.raises(ValueError, match="contiguous"):
        checkpoint.read_into("w", torch.empty(6, 4).T)


def test_expect_names_close_tensors_and_both_shapes(tmp_path: Path) -> None:
    tensors = {"model.layers.0.self_attn.q_proj.weight": torch.ones(4, 6), "model.norm.weight": torch.ones(4)}
    checkpoint = open_checkpoint(write_safetensors(tmp_path, CONFIG, tensors))
    expect(checkpoint, "model.norm.weight", [4])
    with pytest.raises(CheckpointError, match=r"q_project.*missing; close names: model\.layers\.0\.self_attn\.q_proj"):
        expect(checkpoint, "model.layers.0.self_attn.q_project.weight", (4, 6))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .*expected shape \[4, 8\], found \[4, 6\]"):
        expect(checkpoint, "model.layers.0.self_attn.q_proj.weight", (4, 8))
    with pytest.raises(CheckpointError, match="no name of its 2 tensors is close"):
        expect(checkpoint, "zzz", (1,))
    with pytest.raises(CheckpointError, match="'zzz' is missing"):
        checkpoint.shape("zzz")


def test_an_index_that_names_a_missing_file_or_tensor(tmp_path: Path) -> None:
    write_safetensors(tmp_path, CONFIG, some_tensors(), shard_bytes=100)
    index = tmp_path / "model.safetensors.index.json"
    fields = json.loads(index.read_text())
    first = fields["weight_map"]["cube"]
    fields["weight_map"]["other"] = first
    index.write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match=rf"{first}: tensor 'other' is missing"):
        open_checkpoint(tmp_path)
    for stray in ("gone.safetensors", "../" + first, "/etc/passwd"):
        fields["weight_map"]["other"] = stray
        index.write_text(json.dumps(fields))
        with pytest.raises(CheckpointError, match="'other' is said to be in"):
            open_checkpoint(tmp_path)
    index.write_text('{"weight_map": [1]}')
    with pytest.raises(CheckpointError, match="expected 'weight_map'"):
        open_checkpoint(tmp_path)


def test_folders_without_a_usable_model_say_what_they_lack(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors file"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle"):
        open_checkpoint(tmp_path)
    for name in ("a", "b"):
        save_file({name: torch.ones(2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"2 safetensors files and no model\.safetensors\.index\.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="expected a JSON object, found list"):
        open_checkpoint(tmp_path)
    with pytest.raises(ModelError, match="found nothing there"):
        open_checkpoint(tmp_path / "missing")


def test_a_truncated_file_names_the_tensor(tmp_path: Path) -> None:
    write_safetensors(tmp_path, CONFIG, {"first": torch.ones(8), "second": torch.ones(8)})
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: tensor 'second' ends at byte .*: the file is trunc"
    ):
        open_checkpoint(tmp_path)
    file.write_bytes(whole + b"x")
    with pytest.raises(CheckpointError, match="1 bytes after the last tensor"):
        open_checkpoint(tmp_path)


def test_a_file_that_shrinks_after_opening_is_noticed(tmp_path: Path) -> None:
    write_safetensors(tmp_path, CONFIG, {"w": torch.ones(64)})
    checkpoint = open_checkpoint(tmp_path)
    file = tmp_path / "model.safetensors"
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size - 4)
    with pytest.raises(CheckpointError, match=r"tensor 'w': expected 256 bytes at offset \d+, found 252: truncated"):
        checkpoint.tensor("w")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "F33"}, "dtype 'F33' is not known; known: F64, F32"),
        ({"dtype": ["F32"]}, "is not known"),
        ({"shape": [3]}, r"shape \[3\] of F32 takes 12 bytes, data_offsets give 8"),
        ({"shape": [-2]}, "damaged shape"),
        ({"shape": [True, 2]}, "damaged shape"),
        ({"shape": None}, "damaged shape"),
        ({"data_offsets": [4, 12]}, r"starts at byte \d+, expected"),
        ({"data_offsets": [8, 0]}, "data_offsets give -8"),
        ({"data_offsets": [0]}, "damaged shape"),
    ],
)
def test_damaged_header_entries(tmp_path: Path, change: dict, message: str) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | change}).encode()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


def test_a_name_that_is_there_twice(tmp_path: Path) -> None:
    entry = '{"dtype": "U8", "shape": [4], "data_offsets": [%d, %d]}'
    header = f'{{"w": {entry % (0, 4)}, "w": {entry % (4, 8)}}}'.encode()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(CheckpointError, match="twice"):
        open_checkpoint(tmp_path)


def test_any_damage_is_an_error_that_names_the_file_or_a_correct_load(tmp_path: Path) -> None:
    write_safetensors(tmp_path, CONFIG, some_tensors())
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    header_end = 8 + int.from_bytes(whole[:8], "little")
    chance = random.Random(3)
    refusals = []
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(header_end)] = chance.randrange(256)
        if chance.random() < 0.2:
            del damaged[chance.randrange(len(damaged)) :]
        file.write_bytes(damaged)
        try:
            checkpoint = open_checkpoint(tmp_path)
            for name in checkpoint.names():
                assert tuple(checkpoint.tensor(name).shape) == checkpoint.shape(name)
            checkpoint.close()
        except CheckpointError as error:
            refusals.append(str(error))
    assert all(str(file) in refusal for refusal in refusals)
    assert 250 < len(refusals) < 400
