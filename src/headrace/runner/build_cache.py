"""Packed weights on disk: what a start has made of a checkpoint is read by the next one, in place of making it again.

A record is found by all that its bytes depend on: the checkpoint's files (path, size, time of change), its
configuration, how each parameter lies in memory, this package and the level of the native core. What is found is
checked by checksums; what is damaged is said, deleted, and made anew.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch
import xxhash

from headrace.core.errors import CheckpointError
from headrace.models.base import Model
from headrace.ops.native import core
from headrace.weights.checkpoint import Checkpoint
from headrace.weights.files import as_bytes
from headrace.weights.packed_file import Part, read_packed, write_packed

log = logging.getLogger("headrace")

_SUFFIX = ".packed"
_PACKAGE = Path(__file__).parent.parent
_GB = 10**9


class WeightCache(Protocol):
    """Where filled parameters may come from."""

    def fill(self, model: Model, checkpoint: Checkpoint, load: Callable[[], None], threads: int) -> None:
        """Fills the parameters of ``model`` with what ``load`` would fill them with."""
        ...


class NoCache:
    """Every start loads."""

    def fill(self, model: Model, checkpoint: Checkpoint, load: Callable[[], None], threads: int) -> None:
        load()


class DiskCache:
    """Records in a folder; the one that has not been read for the longest time goes when there are too many."""

    def __init__(self, folder: Path, max_records: int, max_gb: float) -> None:
        self._folder = folder
        self._max_records = max_records
        self._max_bytes = int(max_gb * _GB)

    def fill(self, model: Model, checkpoint: Checkpoint, load: Callable[[], None], threads: int) -> None:
        key = _key(model, checkpoint)
        path = self._folder / f"{key}{_SUFFIX}"
        if path.exists() and self._read(path, key, model, threads):
            return
        load()
        self._write(path, key, model)

    def _read(self, path: Path, key: str, model: Model, threads: int) -> bool:
        parts = model.memory()
        try:
            read_packed(path, key, [Part(_view(part), _owns_pages(part)) for part in parts], threads)
        except CheckpointError as error:
            log.warning("build cache: %s; the weights are packed again", error)
            # As it was: what loading leaves out is zero.
            with torch.inference_mode():
                for part in parts:
                    part.zero_()
            with suppress(OSError):
                path.unlink()
            return False
        log.info("build cache: %s", path)
        with suppress(OSError):
            os.utime(path)
        return True

    def _write(self, path: Path, key: str, model: Model) -> None:
        parts = model.memory()
        n_bytes = sum(part.numel() for part in parts)
        if n_bytes > self._max_bytes:
            log.warning(
                "build cache: packed weights of %.1f GB are not kept, since max_cache_storage_gb=%g",
                *(n_bytes / _GB, self._max_bytes / _GB),
            )
            return
        try:
            self._make_room(n_bytes)
            write_packed(path, key, [_view(part) for part in parts])
        except OSError as error:
            log.warning("build cache: %s cannot be written: %s; the next start packs again", path, error)
            return
        log.info("build cache: %s is written, %.2f GB", path, n_bytes / _GB)

    def _make_room(self, n_bytes: int) -> None:
        """Deletes the records used last the longest ago, until one more of ``n_bytes`` has its place."""
        if not self._folder.is_dir():
            return
        records = sorted(
            ((entry.stat().st_mtime_ns, entry.stat().st_size, Path(entry)) for entry in os.scandir(self._folder)
             if entry.name.endswith(_SUFFIX)),
        )  # fmt: skip
        left = sum(size for _, size, _ in records)
        while records and (len(records) >= self._max_records or left + n_bytes > self._max_bytes):
            _, size, path = records.pop(0)
            path.unlink(missing_ok=True)
            left -= size


def _view(part: torch.Tensor) -> memoryview:
    return memoryview(as_bytes(part))


def _owns_pages(part: torch.Tensor) -> bool:
    whole = part.untyped_storage()
    space = whole.nbytes() - (part.data_ptr() - whole.data_ptr())
    return part.data_ptr() % mmap.PAGESIZE == 0 and space >= -(-part.numel() // mmap.PAGESIZE) * mmap.PAGESIZE


def _key(model: Model, checkpoint: Checkpoint) -> str:
    """A name for all that the bytes of the parameters depend on."""
    # How few bits are to be read stands in files that ``config()`` does not give all of.
    beside = {checkpoint.path / name for name in ("config.json", "hf_quant_config.json")}
    files = sorted({checkpoint.file_of(name) for name in checkpoint.names()} | set(filter(Path.is_file, beside)))
    core_level = core.native().level() if core.is_available() else None
    facts: list[Any] = [_this_package(), core_level, checkpoint.config(), _stamps(files), model.layout()]
    return xxhash.xxh3_128_hexdigest(json.dumps(facts, sort_keys=True, default=str).encode())


def _this_package() -> list[Any]:
    """Every source file and the native core: whatever packs may have changed."""
    return _stamps(sorted(path for path in _PACKAGE.rglob("*") if path.suffix in {".py", ".so", ".pyd"}))


def _stamps(files: Sequence[Path]) -> list[Any]:
    stats = [(path.resolve(), path.stat()) for path in files]
    return [[str(path), found.st_size, found.st_mtime_ns] for path, found in stats]
