"""A GGUF model in several files, ``NAME-00001-of-00003.gguf`` and so on, as llama.cpp writes them. No torch.

Each is a GGUF file with tensors of its own, its number from 0 (``split.no``), how many there are (``split.count``) and
how many tensors in all (``split.tensors.count``). What else the metadata say is in the first.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from headrace.core.errors import CheckpointError

from .gguf_reader import GgufHeader, TensorInfo, read_header

_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def parts_by_name(path: Path) -> tuple[Path, ...]:
    """All files of the model that ``path`` is a part of, as its name says; that one alone if it says nothing."""
    found = _NAME.fullmatch(path.name)
    if found is None:
        return (path,)
    stem, _, count = found.groups()
    return tuple(path.with_name(f"{stem}-{number:05d}-of-{count}.gguf") for number in range(1, int(count) + 1))


def read_parts(path: Path) -> tuple[GgufHeader, tuple[Path, ...]]:
    """The header of the first file with the tensors of all, and all files, which ``TensorInfo.part`` counts.

    ``path``: of the first one. Raises CheckpointError for another one, and where one is missing, damaged or of
    another model.
    """
    header = read_header(path)
    count = header.metadata.get("split.count", 1)
    if count in (0, 1):
        return header, (path,)
    paths = parts_by_name(path)
    if len(paths) != count:
        raise CheckpointError(
            f"{path}: is one of {count} files: expected a name that ends in -00001-of-{count:05d}.gguf; give the files"
            " the names that they were written with"
        )
    if path != paths[0]:
        raise CheckpointError(f"{path}: is one of {count} files of a model; give the first, {paths[0].name}")
    tensors: dict[str, TensorInfo] = {}
    for part, one in enumerate(paths):
        found = header if part == 0 else _beside(one, path, count)
        if found.metadata.get("split.no", 0) != part:
            raise CheckpointError(f"{one}: is number {found.metadata.get('split.no')} of {count} files, not {part}")
        twice = tensors.keys() & found.tensors.keys()
        if twice:
            raise CheckpointError(f"{one}: tensor {min(twice)!r} is in another of the {count} files too")
        tensors |= {name: replace(info, part=part) for name, info in found.tensors.items()}
    wanted = header.metadata.get("split.tensors.count", len(tensors))
    if len(tensors) != wanted:
        raise CheckpointError(f"{path}: its {count} files hold {len(tensors)} tensors, expected {wanted}")
    return replace(header, tensors=tensors), paths


def _beside(path: Path, first: Path, count: int) -> GgufHeader:
    if not path.is_file():
        raise CheckpointError(f"{first}: is one of {count} files, and {path.name} is not beside it")
    header = read_header(path)
    if header.metadata.get("split.count") != count:
        raise CheckpointError(f"{path}: is no part of {first.name}: split.count is not {count}")
    return header
