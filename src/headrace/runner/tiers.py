"""Blocks in host memory and in a file, the tiers below the arena, and how a step moves and copies them."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import xxhash

from headrace.core.errors import ConfigError
from headrace.core.plan import BlockCopy, BlockMove, MoveKind

log = logging.getLogger("headrace")


class BlockFile:
    """Blocks of all groups in one file without a name, which is gone with the process, however that ends.

    Each block is read back with the checksum it was written with, or counts as lost.

    Args:
        folder: where the file is made.
        strides: bytes from one block to the next, by group.
        n_bytes: of all blocks.

    Raises:
        ConfigError: no such file can be made, or there is no room for it.
    """

    def __init__(self, folder: Path, strides: Sequence[int], n_bytes: int) -> None:
        try:
            free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
            self._file = tempfile.TemporaryFile(prefix="headrace-kv-", dir=folder, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise ConfigError(
                f"KvCacheConfig.disk_cache_path={str(folder)!r}: {error.strerror}; name a folder that can be written to"
            ) from error
        if n_bytes > free:
            raise ConfigError(
                f"KvCacheConfig.disk_cache_size: {n_bytes:,} bytes, and {free:,} are free in {folder}; lower it"
            )
        self._strides = tuple(strides)
        self._digests: dict[tuple[int, int], bytes] = {}

    def write(self, group: int, place: int, block: torch.Tensor) -> None:
        """Raises OSError, and then the place holds nothing."""
        data = _bytes_of(block)
        self._digests.pop((group, place), None)
        offset, done = place * self._strides[group], 0
        while done < len(data):
            done += os.pwrite(self._file.fileno(), data[done:], offset + done)
        self._digests[group, place] = xxhash.xxh3_128_digest(data)

    def read(self, group: int, place: int, block: torch.Tensor) -> None:
        """Raises OSError if the block cannot be read, or is not what was written."""
        digest = self._digests.pop((group, place), None)
        if digest is None:
            raise OSError("it was never written")
        data = _bytes_of(block)
        offset, done = place * self._strides[group], 0
        while done < len(data):
            count = os.preadv(self._file.fileno(), [data[done:]], offset + done)
            if count == 0:
                raise OSError("the file ends before it")
            done += count
        if xxhash.xxh3_128_digest(data) != digest:
            raise OSError("its checksum is not the one it was written with")


class BlockMover:
    """Makes the moves and copies of a step, one after the other.

    ``arena[g]`` and ``host[g]``: [n_blocks, n_layers, numbers] of group g; without tiers there is no host, and no move
    comes.
    """

    def __init__(
        self, arena: Sequence[torch.Tensor], host: Sequence[torch.Tensor] = (), disk: BlockFile | None = None
    ) -> None:
        self._arena = arena
        self._host = host
        self._disk = disk

    def make(self, moves: Sequence[BlockMove], copies: Sequence[BlockCopy] = ()) -> tuple[int, ...]:
        """The places of moves that failed, each of which has been logged. Only those from and to the disk may."""
        failed = []
        n_copied = 0
        for place, move in enumerate(moves):
            while n_copied < len(copies) and copies[n_copied].after <= place:
                self._copy(copies[n_copied])
                n_copied += 1
            try:
                self._make(move)
            except OSError as error:
                what = "written to" if move.kind is MoveKind.SPILL else "read from"
                log.warning(
                    "a block of the KV cache could not be %s the disk tier: %s; its tokens will be computed again",
                    what,
                    error.strerror or error,
                )
                failed.append(place)
        for copy in copies[n_copied:]:
            self._copy(copy)
        return tuple(failed)

    def _copy(self, copy: BlockCopy) -> None:
        view = self._arena[copy.group]
        view[copy.dst].copy_(view[copy.src])

    def _make(self, move: BlockMove) -> None:
        group = move.group
        match move.kind:
            case MoveKind.OFFLOAD:
                self._host[group][move.dst].copy_(self._arena[group][move.src])
            case MoveKind.ONBOARD:
                self._arena[group][move.dst].copy_(self._host[group][move.src])
            case MoveKind.SPILL:
                self._open_disk().write(group, move.dst, self._host[group][move.src])
            case MoveKind.FETCH:
                self._open_disk().read(group, move.src, self._host[group][move.dst])

    def _open_disk(self) -> BlockFile:
        if self._disk is None:
            raise RuntimeError("a block is to go to the disk, and there is no disk tier")
        return self._disk


def _bytes_of(block: torch.Tensor) -> memoryview:
    """The memory of a block, to be read and written."""
    return memoryview(block.view(torch.uint8).reshape(-1).numpy())
